"""A run's folder read for its report: every file may be missing, damaged or still growing, which is told."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import FREE_ON_RESUME, Config, from_dict, to_dict
from ..errors import ConfigError
from ..recipes import RECIPES, recipe
from ..telemetry.curves import Points
from ..telemetry.records import Record, parse, sound
from ..telemetry.runs import RunState, judge

FILES = ("config.json", "metrics.jsonl", "status.json")
"""A run's folder holds one of them at least."""


@dataclass(frozen=True, slots=True)
class Start:
    """A start of a run that went on from a checkpoint: when (UTC), and at which global step."""

    time: str
    step: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint by its manifest: file name, global step, epochs done, bytes, SHA-256."""

    name: str
    step: int | None
    epoch: int | None
    bytes: int | None
    sha256: str


@dataclass(slots=True)
class RunData:
    """What a folder tells of a run.

    Attributes:
        name: of the folder.
        config: config.json, flattened to `section.field`; empty where there is none.
        changed: fields whose value is not the recipe's; None where the recipe is not known.
        environment: environment.json.
        status: status.json.
        state: how it stands.
        records: of metrics.jsonl by kind, in order.
        starts: those that went on.
        checkpoints: complete ones, oldest first.
        gaps: what is missing, in words.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    changed: list[str] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    state: RunState | None = None
    records: dict[str, list[Record]] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    @property
    def deciding(self) -> list[str]:
        """Changed fields that decide the result."""
        free = set(FREE_ON_RESUME) - {"run.max_steps"}
        return [name for name in self.changed or [] if name not in free]

    def of(self, kind: str) -> list[Record]:
        """Records of a kind."""
        return self.records.get(kind, [])

    def points(self, kind: str, name: str) -> Points:
        """A field over the global step, where it is a finite number."""
        pairs = ((number(each.get("global_step")), number(each.get(name))) for each in self.of(kind))
        return [(x, y) for x, y in pairs if x is not None and y is not None]


def number(value: Any) -> float | None:
    """A finite number that can be calculated with; None for anything else."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if fits else None


def read_run(folder: Path) -> RunData:
    """What a run's folder holds.

    Raises:
        ConfigError: no run's folder.
    """
    if not any(os.path.isfile(folder / name) for name in FILES):  # unlike Path.is_file, never raises
        raise ConfigError(
            f"RUN is {folder}; allowed: a run's folder, such as runs/demo, which holds {' or '.join(FILES)}"
        )
    run = RunData(folder.resolve().name)
    config = _json(folder / "config.json", run.gaps)
    run.config = _flat(config)
    run.changed = _changed(config)
    run.environment = _json(folder / "environment.json", run.gaps)
    run.status = _json(folder / "status.json", run.gaps)
    if len(sound(run.status)) != len(run.status):
        run.gaps.append("the file status.json is damaged: it holds values of another kind")
    _read_metrics(folder / "metrics.jsonl", run)
    _read_verdicts(folder, run)
    run.starts = _starts(folder / "log.txt")
    run.checkpoints = _checkpoints(folder / "checkpoints")
    try:
        run.state = judge(folder, run.name, run.of("evaluation"), next(reversed(run.of("train")), {}))
    except (TypeError, ValueError, AttributeError):
        run.gaps.append("how the run stands is not known: its files hold values of another kind")
    return run


def _json(path: Path, gaps: list[str]) -> dict[str, Any]:
    """A JSON object; where there is none, a gap and an empty one."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        gaps.append(f"there is no {path.name}")
    except OSError as error:
        gaps.append(f"the file {path.name} cannot be read: {error.strerror}")
    except (ValueError, RecursionError):
        gaps.append(f"the file {path.name} is damaged: it is not JSON")
    else:
        if isinstance(value, dict):
            return value
        gaps.append(f"the file {path.name} is damaged: it holds no object")
    return {}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """`section.field` to value."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            flat[name] = value
    return flat


def _changed(config: dict[str, Any]) -> list[str] | None:
    """Fields that are not the recipe's; names and places of the run left out."""
    name = config.get("recipe")
    if not isinstance(name, str) or name not in RECIPES:
        return None
    try:
        own = _flat(to_dict(_parsed(config)))
    except ConfigError:  # of another version
        own = _flat(config)
    original = _flat(to_dict(recipe(name)))
    return [key for key, value in own.items() if original.get(key) != value and key not in _PLACES]


_PLACES = ("data.train", "data.val", "run.name", "run.folder", "run.resume")


def _parsed(config: dict[str, Any]) -> Config:
    try:
        return from_dict(config)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None


def _read_metrics(path: Path, run: RunData) -> None:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        run.gaps.append("there is no metrics.jsonl: nothing was reported yet")
        return
    except OSError as error:
        run.gaps.append(f"the file metrics.jsonl cannot be read: {error.strerror}")
        return
    records = [parse(line) for line in lines if line.strip()]
    damaged = sum(not record for record in records)
    if damaged:
        run.gaps.append(f"{damaged} of {len(records)} lines of metrics.jsonl are damaged and left out")
    for record in filter(None, records):
        run.records.setdefault(str(record.get("kind")), []).append(record)


def _read_verdicts(folder: Path, run: RunData) -> None:
    """What `fasttrain evaluate --output` wrote into the folder: its subnets, if the run itself has none."""
    for path in sorted(folder.glob("*.json")):
        value = _json(path, [])
        subnets, main = value.get("subnets"), value.get("main")
        if isinstance(subnets, list) and isinstance(main, dict) and not run.of("subnets"):
            reports = [each for each in subnets if isinstance(each, dict)]
            run.records["subnets"] = [each | {"source": path.name, "main": main} for each in reports]


def _starts(path: Path) -> list[Start]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = (re.match(r"(\S+) resumed from .* at step (\d{1,15})$", line) for line in lines)
    return [Start(match[1], int(match[2])) for match in found if match]


def _checkpoints(folder: Path) -> list[Checkpoint]:
    checkpoints = []
    for path in sorted(folder.glob("*.json")):
        manifest = _json(path, [])
        values = [number(manifest.get(name)) for name in ("step", "epoch", "bytes")]
        step, epoch, size = (None if each is None else int(each) for each in values)
        checkpoints.append(Checkpoint(f"{path.stem}.pt", step, epoch, size, str(manifest.get("sha256", ""))))
    return checkpoints
