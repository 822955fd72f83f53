"""What a run tells: its folder (config, metrics, log) and its console (progress bar or plain lines)."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from . import __version__
from .config import Config, to_dict
from .errors import ConfigError


class RunFolder:
    """`runs/<name>/`: config.json, metrics.jsonl, log.txt, status.json, checkpoints/."""

    def __init__(self, config: Config) -> None:
        """Name the folder's files; nothing is written yet."""
        self.path = Path(config.run.folder) / (config.run.name or config.recipe or "run")
        self.last = self.path / "checkpoints" / "last.pt"
        self.best = self.path / "checkpoints" / "best.pt"

    def create(self, config: Config) -> None:
        """Make the folder and write the resolved configuration.

        Raises:
            ConfigError: it holds a run already and this is no resume, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=config.run.resume)
            self.last.parent.mkdir(exist_ok=True)
            # Without `resume`, so that the file starts a run of its own.
            fresh = replace(config, run=replace(config.run, resume=False))
            write_json(self.path / "config.json", to_dict(fresh))
            write_json(self.path / "environment.json", environment())
        except FileExistsError:
            raise ConfigError(
                f"{self.path} holds a run already; allowed: --resume to go on with it, or another --run.name"
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"run.folder: cannot write to {str(self.path)[:200]!r}: {error}") from None

    def record(self, kind: str, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")

    def drop_records_after(self, global_step: int) -> None:
        """Forget metrics of steps that a resume will take again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if _global_step(line) <= global_step]
            replace_text(path, "".join(f"{line}\n" for line in kept))

    def status(self, state: str, **values: Any) -> None:
        """Replace status.json."""
        write_json(self.path / "status.json", {"state": state, "time": now(), **values})


class Log:
    """Lines to console and log.txt, and on a terminal a progress bar; silent on other ranks than 0."""

    def __init__(self, folder: RunFolder | None) -> None:
        """`folder` is None on ranks that stay silent."""
        self.folder = folder
        self.console = Console(quiet=folder is None, highlight=False, soft_wrap=True)
        self.progress: Progress | None = None

    def line(self, text: str) -> None:
        """Print and keep one line."""
        self.console.print(text, markup=False)
        self._keep(text)

    def _keep(self, text: str) -> None:
        if self.folder is not None:
            with (self.folder.path / "log.txt").open("a") as file:
                file.write(f"{now()} {text}\n")

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Show a bar for one epoch, if this is a terminal."""
        if self.console.is_terminal and not self.console.quiet:
            self.progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(bar_width=10),
                TextColumn("{task.completed}/{task.total} {task.fields[text]} ETA"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self.progress.add_task("", total=steps, completed=done, epoch=f"{epoch + 1}/{epochs}", text="")
            self.progress.start()

    def advance(self) -> None:
        """One step done."""
        if self.progress is not None:
            self.progress.advance(self.progress.task_ids[0])

    def metrics(self, text: str, short: str) -> None:
        """Current metrics: in short beside the bar on a terminal, else a line; log.txt keeps the line."""
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], text=short)
            self._keep(text)
        else:
            self.line(text)

    def end_epoch(self) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


class Stopwatch:
    """Seconds since the last lap, and the share of them spent waiting for data."""

    def __init__(self) -> None:
        """Start."""
        self.started = time.perf_counter()
        self.waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside counts as waiting."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap and the share of them spent waiting; starts the next."""
        moment = time.perf_counter()
        seconds = moment - self.started
        share = self.waited / seconds
        self.started, self.waited = moment, 0.0
        return seconds, share


def environment() -> dict[str, Any]:
    """Versions, machine and commit, for the record."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "fasttrain": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in ("triton", "timm", "nvidia-dali-cuda130", "nvidia-dali-cuda120")},
        "cuda": torch.version.cuda,
        "machine": platform.platform(),
        "gpus": gpus,
        "started": now(),
    }


def _version(distribution: str) -> str:
    """Of an installed package; empty without it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """The checked-out commit of this source tree; empty outside of one."""
    source = Path(__file__).resolve().parent
    result = subprocess.run(
        ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip()


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _global_step(line: str) -> float:
    """Of a line of metrics; infinite for one that a crash cut off."""
    try:
        return json.loads(line)["global_step"]
    except ValueError:
        return math.inf
