"""Accuracy over the number of subnets trained with (Figure 9), from the runs' metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..errors import ConfigError
from .options import Options
from .output import Rows, finish, whole_numbers
from .runs import labels, records, settings


@dataclass(frozen=True, kw_only=True)
class NumberOptions(Options):
    """Top-1 over method.subnets, across runs; nothing is computed anew."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A run.

    Attributes:
        label: of the run.
        subnets: trained with per step; 0 with common training.
        best: best Top-1 of the main network, percent.
        last: at its last evaluation.
        subnets_mean: mean Top-1 of its subnets as the run evaluated them; None if it did not.
        statistics: whose batch-norm statistics they ran with; empty if it did not.
    """

    label: str
    subnets: int
    best: float
    last: float
    subnets_mean: float | None
    statistics: str


@dataclass(frozen=True, slots=True)
class Number:
    """Top-1 over the number of subnets, by that number."""

    runs: list[Trained]

    def rows(self) -> Rows:
        """Each run."""
        cells = [
            [r.label, r.subnets, r.best, r.last, "-" if r.subnets_mean is None else r.subnets_mean]
            for r in self.runs
        ]
        return Rows(["Top-1, %", "subnets per step", "best", "last", "subnets' mean"], cells)

    def draw(self, figure: Any) -> None:
        """Each run, and the mean of those with the same number."""
        axes = figure.add_subplot()
        main = [(run.subnets, run.best) for run in self.runs]
        subnets = [(run.subnets, run.subnets_mean) for run in self.runs if run.subnets_mean is not None]
        for index, (label, points) in enumerate(
            (("main network, best", main), ("mean of the subnets", subnets))
        ):
            if points:
                numbers = sorted({number for number, _ in points})
                means = [fmean(y for number, y in points if number == x) for x in numbers]
                axes.plot(numbers, means, "--" if index else "-", color=f"C{index}", label=label)
                axes.scatter(*zip(*points, strict=True), s=26, color=f"C{index}")
        whole_numbers(axes)
        finish(
            axes,
            title="Accuracy over the number of subnets",
            x="subnets trained with per step (0: common training)",
        )


def measure(runs: Sequence[Path], options: NumberOptions) -> Number:
    """Read each run's configuration and metrics.

    Raises:
        ConfigError: no runs' folders, runs of different networks, or all with the same number of subnets.
        DataError: a run that was never evaluated.
    """
    configs = [settings(run) for run in runs]
    names = {config.model.name for config in configs}
    if len(names) > 1:
        raise ConfigError(f"the runs are of {', '.join(sorted(names))}; allowed here: runs of one network")
    trained = []
    for label, run, config in zip(labels(runs), runs, configs, strict=True):
        accuracies = [each["top1"] for each in records(run, "evaluation")]
        subnets = records(run, "subnets")
        trained.append(
            Trained(
                label=label,
                subnets=config.method.subnets if config.method.name == "stimulative" else 0,
                best=max(accuracies),
                last=accuracies[-1],
                subnets_mean=subnets[-1]["mean"] if subnets else None,
                statistics=subnets[-1]["statistics"] if subnets else "",
            )
        )
    numbers = {each.subnets for each in trained}
    if len(numbers) == 1:
        raise ConfigError(
            f"all runs trained with {numbers.pop()} subnets; allowed: runs with different method.subnets"
        )
    return Number(sorted(trained, key=lambda each: each.subnets))
