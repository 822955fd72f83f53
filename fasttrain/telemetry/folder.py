"""A run's folder: its configuration, environment, metrics, log, status and checkpoints."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from ..config import Config, absolute, to_dict
from ..errors import ConfigError
from ..guards.lock import lock
from .environment import environment
from .files import append_line, now, read_json, replace_text, to_json, write_json
from .records import sound


class RunFolder:
    """`runs/<name>/`: config.json, metrics.jsonl, log.txt, status.json, checkpoints/."""

    def __init__(self, config: Config) -> None:
        """Name the folder's files; nothing is written yet."""
        self.path = Path(config.run.folder) / (config.run.name or config.recipe or "run")
        self.checkpoints = self.path / "checkpoints"
        self._lock: TextIO | None = None

    def take(self) -> None:
        """Make sure that no other process writes the folder, if it exists.

        Raises:
            ConfigError: another one does.
        """
        if self._lock is None and os.path.isdir(self.path):  # unlike Path.is_dir, never raises
            self._lock = lock(self.path)

    def create(self, config: Config) -> None:
        """Make the folder, take it, and write the resolved configuration.

        Raises:
            ConfigError: it cannot be written, or another process writes it.
        """
        with self._told():
            self.path.mkdir(parents=True, exist_ok=True)
            self.take()
            self.checkpoints.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.checkpoints):  # told now, not after the first epoch
                pass
            # Not `never`, so that the file goes on with its own run.
            resume = "auto" if config.run.resume == "never" else config.run.resume
            kept = replace(config, run=replace(config.run, resume=resume))
            write_json(self.path / "config.json", to_dict(absolute(kept)))
            write_json(self.path / "environment.json", environment())

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What cannot be written within is one message."""
        try:
            yield
        except ConfigError:
            raise
        except (OSError, ValueError) as error:
            raise ConfigError(f"run.folder: cannot write to {str(self.path)!r}: {error}") from None

    def give_back(self) -> None:
        """Other processes may write the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def moved(self) -> str:
        """Where the run lay before, if its folder was moved or copied since; empty: it lies where it was."""
        known = sound(read_json(self.path / "config.json").get("run"))
        folder, name = str(known.get("folder", "")), str(known.get("name") or self.path.name)
        before = os.path.join(folder, name)
        same = os.path.realpath(before) == os.path.realpath(self.path)
        return before if os.path.isabs(folder) and not same else ""

    @property
    def is_done(self) -> bool:
        """Whether the run in it came to its end."""
        return read_json(self.path / "status.json").get("state") == "done"

    def record(self, kind: str, **values: Any) -> None:
        """Append one line to metrics.jsonl, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        append_line(self.path / "metrics.jsonl", to_json({"kind": kind, **values}))

    def drop_records_after(self, global_step: int, kinds: Mapping[str, int]) -> None:
        """Forget metrics of what a resume will do again.

        Args:
            global_step: records after it are dropped.
            kinds: other global steps for records of some kinds.

        Raises:
            ConfigError: the file cannot be read or written.
        """
        path = self.path / "metrics.jsonl"
        with self._told():
            if path.exists():
                lines = path.read_bytes().split(b"\n")
                kept = [line.decode() for line in lines if _is_kept(line, global_step, kinds)]
                replace_text(path, "".join(f"{line}\n" for line in kept))

    def status(self, state: str, **values: Any) -> None:
        """Replace status.json, which also says who writes: `fasttrain runs` looks whether that one lives.

        Raises:
            ConfigError: it cannot be written.
        """
        process = {"host": platform.node(), "pid": os.getpid()}
        with self._told():
            write_json(self.path / "status.json", {"state": state, "time": now(), **process, **values})


def _is_kept(line: bytes, global_step: int, kinds: Mapping[str, int]) -> bool:
    """Whether a line of metrics is from before; one that a crash cut off, or a disk spoiled, is not."""
    try:
        record = json.loads(line.decode())
        return record["global_step"] <= kinds.get(record["kind"], global_step)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
