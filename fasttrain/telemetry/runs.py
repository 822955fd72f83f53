"""The runs in a folder and how they stand."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from .files import read_json
from .records import Record, parse, sound
from .words import duration, printable

SILENCE = 3600.0
"""Seconds without a written file after which a run that should be running is taken for dead."""

COLOURS = {"running": "green", "done": "", "preempted": "yellow", "interrupted": "yellow"}
"""Of states; the others are red."""


@dataclass(frozen=True, slots=True)
class RunState:
    """How a run stands.

    Attributes:
        name: its folder, within the one that was listed.
        state: as status.json says, or `dead`: it should be running, but its process is gone, or nothing was
            written for an hour.
        epoch: epochs done.
        epochs: of the whole run; 0 if unknown.
        step: global steps done.
        top1: best of the main network's evaluations, percent, or None.
        images_per_second: at the last report, over all processes, or None.
        eta_seconds: until it is done; None unless it is running.
        ended: when it ended, UTC; empty if it is running or dead.
    """

    name: str
    state: str
    epoch: int
    epochs: int
    step: int
    top1: float | None
    images_per_second: float | None
    eta_seconds: float | None
    ended: str


def list_runs(folder: Path) -> list[RunState]:
    """The runs in a folder and in its folders, by name.

    Raises:
        ConfigError: no such folder.
    """
    if not os.path.isdir(folder):  # unlike Path.is_dir, never raises
        raise ConfigError(f"the folder of runs is {folder}; allowed: a folder, such as run.folder")
    return [read_run(path, str(path.relative_to(folder))) for path in sorted(_runs(folder))]


def is_run(folder: Path) -> bool:
    """Whether it is a run's folder."""
    return os.path.isfile(folder / "status.json")


def _runs(folder: Path) -> Iterator[Path]:
    for pattern in ("*/status.json", "*/*/status.json"):
        yield from (path.parent for path in folder.glob(pattern))


def read_run(path: Path, name: str) -> RunState:
    """How the run in a folder stands."""
    try:
        lines = (path / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        lines = []
    evaluations = [parse(line) for line in lines if line.startswith(b'{"kind": "evaluation"')]
    last = next((parse(line) for line in reversed(lines) if line.startswith(b'{"kind": "train"')), {})
    return judge(path, name, evaluations, last)


def judge(path: Path, name: str, evaluations: Sequence[Record], last: Record) -> RunState:
    """How a run stands, whose records are known.

    Args:
        path: its folder.
        name: what to call it.
        evaluations: their records.
        last: the last record of training; empty if there is none.
    """
    status = sound(read_json(path / "status.json"))
    state = _state(path, status)
    position = last if last.get("global_step", 0) > status.get("global_step", 0) else status
    eta = None
    if state == "running" and last.get("eta_seconds") is not None:
        eta = max(0.0, last["eta_seconds"] - _seconds_since(last.get("time", "")))
    return RunState(
        name=name,
        state=state,
        epoch=position.get("epoch", 0),
        epochs=sound(read_json(path / "config.json").get("run")).get("epochs", 0),
        step=position.get("global_step", 0),
        top1=max((each["top1"] for each in evaluations if each.get("top1") is not None), default=None),
        images_per_second=last.get("images_per_second"),
        eta_seconds=eta,
        ended="" if state in ("running", "dead") else status.get("time", ""),
    )


def _state(path: Path, status: Record) -> str:
    state: str = status.get("state", "unknown")
    if state != "running":
        return state
    here = status.get("host") == platform.node()
    gone = here and not _lives(int(status.get("pid", 0)))
    return "dead" if gone or time.time() - _last_written(path) > SILENCE else state


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return process > 0


def _last_written(path: Path) -> float:
    files = [*path.glob("*"), *path.glob("checkpoints/*")]
    times = []
    for file in files:
        try:
            times.append(file.stat().st_mtime)
        except OSError:  # a temporary file that has gone, a link in a circle
            continue
    return max(times, default=0.0)


def _seconds_since(moment: str) -> float:
    """Since a time as `files.now` writes it; 0 for another text."""
    try:
        then = datetime.strptime(moment, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return 0.0
    return (datetime.now(UTC) - then).total_seconds()


def table(runs: Sequence[RunState]) -> Table:
    """The runs for a terminal."""
    lines = Table(box=None, pad_edge=False)
    for column in ("run", "state"):
        lines.add_column(column, no_wrap=True)
    for column in ("epoch", "step", "best Top-1", "img/s", "ETA or end (UTC)"):
        lines.add_column(column, justify="right", no_wrap=True)
    for run in runs:
        rate = "-" if run.images_per_second is None else f"{run.images_per_second:,.0f}"
        lines.add_row(
            Text(printable(run.name)),
            Text(printable(run.state), COLOURS.get(run.state, "red")),
            f"{run.epoch}/{run.epochs or '?'}",
            f"{run.step:,}",
            "-" if run.top1 is None else f"{run.top1:.2f} %",
            rate,
            when(run),
        )
    return lines


def when(run: RunState) -> str:
    """When a run will end, or ended."""
    if run.eta_seconds is not None:
        return f"in {duration(run.eta_seconds)}"
    return run.ended.replace("T", " ").removesuffix("Z") or "-"
