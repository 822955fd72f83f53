"""Accuracy over the epochs (ST Figure 5), from the runs' metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .options import Options
from .output import Rows, finish, whole_numbers
from .runs import labels, records, settings


@dataclass(frozen=True, kw_only=True)
class EpochsOptions(Options):
    """Top-1 of the main network at each evaluation of the runs; nothing is computed anew."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A run: its label, epochs done at each evaluation, and Top-1, percent."""

    label: str
    epochs: list[int]
    top1: list[float]


@dataclass(frozen=True, slots=True)
class Epochs:
    """Top-1 of each run over the epochs."""

    curves: list[Curve]

    def rows(self) -> Rows:
        """Evaluations, best and last."""
        cells = []
        for curve in self.curves:
            best = max(range(len(curve.top1)), key=curve.top1.__getitem__)
            cells.append([curve.label, len(curve.top1), curve.top1[best], curve.epochs[best], curve.top1[-1]])
        return Rows(["Top-1, %", "evaluations", "best", "at epoch", "last"], cells)

    def draw(self, figure: Any) -> None:
        """A curve for each run."""
        axes = figure.add_subplot()
        for index, curve in enumerate(self.curves):
            axes.plot(
                curve.epochs,
                curve.top1,
                "o-",
                markersize=4,
                color=f"C{index}",
                label=f"{curve.label}: best {max(curve.top1):.2f} %",
            )
        whole_numbers(axes)
        finish(axes, title="Accuracy of the main network over the epochs", x="epochs done")


def measure(runs: Sequence[Path], options: EpochsOptions) -> Epochs:
    """Read each run's evaluations.

    Raises:
        ConfigError: no run's folder.
        DataError: a run that was never evaluated.
    """
    curves = []
    for label, run in zip(labels(runs), runs, strict=True):
        settings(run)
        found = records(run, "evaluation")
        curves.append(Curve(label, [each["epoch"] for each in found], [each["top1"] for each in found]))
    return Epochs(curves)
