"""Runs' folders to one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..telemetry.files import replace_text
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
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"-o is {path}; allowed: a file in a folder that exists")
    text = page([read_run(folder) for folder in folders])
    try:
        replace_text(path, text)
    except OSError as error:
        raise ConfigError(f"cannot write the report {path}: {error.strerror}") from None
    return path
