"""A run's folder: its configuration, environment, metrics, log, status and checkpoints."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import Config, to_dict
from ..errors import ConfigError
from .environment import environment
from .files import append_line, now, replace_text, to_json, write_json


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
        """Append one line to metrics.jsonl, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        append_line(self.path / "metrics.jsonl", to_json({"kind": kind, **values}))

    def drop_records_after(self, global_step: int) -> None:
        """Forget metrics of steps that a resume will take again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if _global_step(line) <= global_step]
            replace_text(path, "".join(f"{line}\n" for line in kept))

    def status(self, state: str, **values: Any) -> None:
        """Replace status.json, which also says who writes: `fasttrain runs` looks whether that one lives."""
        process = {"host": platform.node(), "pid": os.getpid()}
        write_json(self.path / "status.json", {"state": state, "time": now(), **process, **values})


def _global_step(line: str) -> float:
    """Of a line of metrics; infinite for one that a crash cut off."""
    try:
        return json.loads(line)["global_step"]
    except ValueError:
        return math.inf
