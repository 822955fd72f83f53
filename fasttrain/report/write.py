"""Runs' folders to one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..telemetry.files import check_output, replace_text
from .page import page
from .reading import read_run


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write a page about runs, finished or not, from what their folders hold.

    Args:
        folders: of the runs, at least one.
        output: the file; None: report.html in the first run's folder.

    Returns:
        Where it is.

    Raises:
        ConfigError: a folder without a run, a file that cannot be written, or no matplotlib.
    """
    path = output or folders[0] / "report.html"
    runs = [read_run(folder) for folder in folders]
    check_output("-o", path)
    text = page(runs)
    try:
        replace_text(path, text)
    except OSError as error:
        raise ConfigError(f"cannot write the report {path}: {error.strerror}") from None
    return path
