"""The runs of an analysis: which checkpoint of each, what to call it, and what is in its metrics."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import build
from ..compat.sets import split_key
from ..config import Config, from_dict
from ..errors import ConfigError, DataError
from ..opening import Opened, opened
from ..subnets import Subnet
from ..telemetry.files import read_json
from ..telemetry.records import Record, Records
from ..telemetry.runs import is_run
from ..telemetry.words import printable
from ..trained import Trained, open_trained
from .options import NetworkOptions, SubnetOptions


@dataclass(frozen=True, slots=True)
class Source:
    """A trained network to look at.

    Attributes:
        label: what tables and plots call it.
        trained: its weights and what is known of it.
    """

    label: str
    trained: Trained

    @property
    def config(self) -> Config:
        """Of its run."""
        return self.trained.config


def find(runs: Sequence[Path], options: NetworkOptions, *, alike: bool = True) -> list[Source]:
    """The chosen checkpoint of each run.

    Args:
        runs: folders, checkpoints, or files of weights.
        options: which checkpoint of a folder, and the recipe of files of weights.
        alike: whether all have to be of one architecture.

    Raises:
        CheckpointError: one is missing or damaged.
        ConfigError: they are of different networks.
    """
    sources = [
        Source(label, open_trained(run, options.checkpoint, options.recipe, options.classes))
        for label, run in zip(labels(runs), runs, strict=True)
    ]
    if alike:
        check_alike(sources)
    for source in sources:
        if source.trained.note:
            print(source.trained.note)
    return sources


def check_alike(sources: Sequence[Source]) -> None:
    """Raises ConfigError unless all are of one architecture."""
    first = sources[0]
    for other in sources[1:]:
        if other.config.model.name != first.config.model.name:
            raise ConfigError(
                f"{first.label} is a {first.config.model.name}, {other.label} a {other.config.model.name}; "
                "allowed here: runs of one network"
            )


def labels(runs: Sequence[Path]) -> list[str]:
    """The runs' names, told apart by their folders where two are the same, and by number if given twice."""
    names = [_name(run) for run in runs]
    told = [
        printable(name if Counter(names)[name] == 1 else os.path.normpath(run))
        for name, run in zip(names, runs, strict=True)
    ]
    times = [told[:index].count(label) for index, label in enumerate(told)]
    return [f"{label} ({time + 1})" if time else label for label, time in zip(told, times, strict=True)]


def _name(run: Path) -> str:
    folder, (file, key) = folder_of(run).resolve().name, split_key(run)
    name = f"{folder}/{file.stem}" if os.path.isfile(file) else folder
    return f"{name}#{key}" if key else name


def folder_of(run: Path) -> Path:
    """A run's folder, or that of the run that a checkpoint file is of."""
    run, _ = split_key(run)
    if not os.path.isfile(run):
        return run
    folder = run.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def open_each(
    sources: Sequence[Source], options: NetworkOptions, calibrates: bool | None = None
) -> Iterator[tuple[Source, Opened]]:
    """Each source with its network, open until the next is asked for; `calibrates` as the options say.

    Raises:
        RunError: see `opened`.
    """
    told: set[str] = set()
    for source in sources:
        with opened(
            source.trained,
            options.calibrates if calibrates is None else calibrates,
            train=options.train,
            val=options.val,
            batch=options.batch,
            images=options.images,
            device=options.device,
        ) as run:
            for note in run.notes:
                if note not in told:
                    print(f"{source.label}: {note}")
            told.update(run.notes)
            yield source, run


def space_of(run: Opened, options: SubnetOptions) -> list[Subnet]:
    """The subnets that an analysis is about.

    Raises:
        ConfigError: a space that does not fit the network, or is too large.
    """
    config = run.config
    if options.space:
        config = replace(config, method=replace(config.method, space=options.space))
    return build.subnets_to_evaluate(config, run.network, options.subnets)


def settings(run: Path) -> Config:
    """A run's configuration, from its folder alone.

    Raises:
        ConfigError: no run's folder, or a configuration that this version does not know.
    """
    if not is_run(run):
        raise ConfigError(f"RUN is {run}; allowed here: a run's folder, such as runs/demo")
    path = run / "config.json"
    values = read_json(path)
    try:
        if not values:
            raise ConfigError("no JSON object")
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path} holds no configuration that is known here: {error}") from None


_NEEDED = {"evaluation": ("epoch", "top1"), "subnets": ("mean", "statistics")}
"""What a record of a kind has, unless it is damaged."""


def records(run: Path, kind: str) -> list[Record]:
    """A run's sound metrics of a kind, oldest first; there may be none but for `evaluation`.

    Raises:
        DataError: it was never evaluated, or its metrics cannot be read.
    """
    metrics = Records(run / "metrics.jsonl")
    try:
        metrics.read()
    except OSError as error:
        raise DataError(f"cannot read {metrics.path}: {error.strerror}") from None
    found = [each for each in metrics.of(kind) if all(each.get(name) is not None for name in _NEEDED[kind])]
    if kind == "evaluation" and not found:
        raise DataError(f"{run} was never evaluated: its metrics.jsonl holds no evaluation")
    return found
