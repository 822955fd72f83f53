"""The benchmarks' results: a long CSV, one row per measurement, each with where and how it was taken."""

from __future__ import annotations

import csv
import io
import math
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fasttrain.errors import ConfigError, DataError
from fasttrain.telemetry import nvml

PLACE = ("device", "threads", "driver", "power_limit_w", "torch", "python", "date", "commit", "n")
"""Last columns of every benchmark's CSV: where, with what and when; `n`: calls behind the value."""

STEP_COLUMNS = (
    *("bench", "mode", "metric", "value", "unit", "draw"),
    *("model", "crop", "batch", "subnets", "space", "sizes", "precision", "memory_format"),
    *("batch_norm", "kernels", "compile"),
    *PLACE,
)
"""Of `step`; what does not apply is left empty."""

RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]


class Rows:
    """A growing CSV file. Each `write` appends whole lines, so that a run that is cut off leaves a valid one.

    The first `write` replaces an older file: a run that fails before its first result destroys nothing.

    Attributes:
        kept: every row so far.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], common: Mapping[str, Any], *, extend: bool = False
    ) -> None:
        """Start a file.

        Args:
            path: of the file; an older one of a benchmark is replaced.
            columns: of the file.
            common: values of columns that all rows share.
            extend: keep an older file's rows, which must have the same columns, and append.

        Raises:
            ConfigError: the file's folder cannot be made, or the file holds something else.
        """
        self.path, self.columns, self.common = path, tuple(columns), dict(common)
        self.kept: list[Row] = []
        self._pending: list[Row] = []
        self._extend = extend
        _check_output(path)
        if extend and path.exists() and path.stat().st_size:
            self.kept = list(read(path, self.columns))

    def add(self, **values: Any) -> None:
        """Add one measurement; `write` brings it to the file."""
        row = dict.fromkeys(self.columns, "") | self.common | {"n": 1} | values
        assert set(row) == set(self.columns), f"columns {sorted(set(row) ^ set(self.columns))}"
        self._pending.append(row)

    def write(self) -> None:
        """Append what was added since the last call."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        # what another process has written meanwhile stays, if this one extends
        goes_on = bool(self.kept) or (self._extend and self.path.exists() and self.path.stat().st_size > 0)
        if not goes_on:
            writer.writeheader()
        writer.writerows(self._pending)
        with self.path.open("a" if goes_on else "w", newline="") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
        self.kept += self._pending
        self._pending = []


def read(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """A benchmark's rows.

    Args:
        path: of the file.
        columns: that it must have, if any are given.

    Raises:
        DataError: no rows, rows cut off, other columns, or no text.
        OSError: it cannot be read.
    """
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise DataError(f"{path} is no CSV file of a benchmark: it is not UTF-8 text") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows = list(reader)
    if columns and tuple(reader.fieldnames or ()) != tuple(columns):
        raise DataError(f"{path} has other columns; allowed: {','.join(columns)}")
    if not rows or not text.endswith("\n") or any(None in row or None in row.values() for row in rows):
        raise DataError(f"{path} is empty or cut off: measure again, or remove its last line")
    return rows


def _check_output(path: Path) -> None:
    """Refuse what cannot be a benchmark's file, before anything is measured."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"--output is {path}; allowed: a file's name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        with path.open("rb") if path.exists() else io.BytesIO() as file:
            start = file.read(6)
    except OSError as error:
        raise ConfigError(f"--output is {path}: {error.strerror}") from None
    if start not in (b"", b"bench,"):
        raise ConfigError(f"--output is {path}, which holds something else; allowed: a new file or a bench's")


def environment(device: torch.device) -> dict[str, Any]:
    """The columns that say where a measurement was taken."""
    driver, power_limit = _driver_and_power_limit(device)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "driver": driver,
        "power_limit_w": power_limit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
    }


def computed() -> dict[str, Any]:
    """The same columns where nothing was measured: no device, but versions, date and commit."""
    here = environment(torch.device("cpu"))
    return here | {"device": "computed", "threads": "", "driver": "", "power_limit_w": ""}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = str(torch.cpu.get_capabilities().get("cpu_name", "")) or platform.machine()
    return f"{name.strip()} CPU, {os.cpu_count()} cores"


def default_output(bench: str, device: torch.device) -> Path:
    """`results/<device>/<bench>.csv` beside this file."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return RESULTS / slug / f"{bench}.csv"


def commit() -> str:
    """The short commit, with -dirty if tracked or new files differ (results aside); `unknown` without git."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", ":/", ":(exclude)results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _driver_and_power_limit(device: torch.device) -> tuple[str, str]:
    """The driver's version and the power limit in watts; empty on a CPU or without pynvml."""
    try:
        gpu = nvml.find(device)
    except nvml.Unavailable:
        return "", ""
    try:
        limit = gpu.power_limit()
        return gpu.driver(), "" if math.isnan(limit) else f"{limit:g}"
    finally:
        gpu.close()
