"""KL distance of all subnets to the main network over a run's checkpoints (ST Figure 7).

A run's folder gives the checkpoints that are there: the newest `run.keep` and the best. Files name others; a
run with a larger `run.keep` has a longer curve.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, stack

from ..checkpoint.archive import Archive
from ..compat.sets import split_key
from ..errors import ConfigError
from ..evaluation import tally
from ..kernels.normalized_loss.reference import normalize_logits
from ..opening import Opened
from ..subnets import Depths, Subnet, depths_of
from ..trained import open_trained
from .options import SubnetOptions
from .output import Rows, beside, extent, finish, of_others, whole_numbers, whose
from .runs import Source, check_alike, folder_of, labels, open_each, space_of


@dataclass(frozen=True, kw_only=True)
class KlOptions(SubnetOptions):
    """KL(main network || subnet) of every subnet, over the checkpoints of each run."""

    normalize: Literal["none", "layer_norm", "l2"] = "none"
    """Normalization of the logits before the KL: none (ST), or as a run's method.normalize (ST++)."""


@dataclass(frozen=True, slots=True)
class Point:
    """A checkpoint: its run's label, its file, epochs and steps done, and each subnet's mean KL, nats."""

    label: str
    checkpoint: str
    epoch: int
    step: int
    kl: list[float]


@dataclass(frozen=True, slots=True)
class Kl:
    """KL of the subnets over checkpoints.

    Attributes:
        statistics: whose batch-norm statistics the networks ran with.
        normalize: normalization of the logits.
        full: blocks per stage of the main network, whose KL to itself no summary counts.
        depths: of each subnet.
        points: by run, and there by step.
    """

    statistics: str
    normalize: str
    full: Depths
    depths: list[Depths]
    points: list[Point]

    def rows(self) -> Rows:
        """Mean and range over the subnets, of each checkpoint."""
        cells = [
            [f"{point.label}, step {point.step}", point.epoch, *_summary(kl)]
            for point, kl in zip(self.points, self._of_others(), strict=True)
        ]
        return Rows(["KL to the main network, nats", "epochs", "mean", "least", "greatest"], cells)

    def draw(self, figure: Any) -> None:
        """Mean and range over the subnets, over epochs."""
        axes = figure.add_subplot()
        others = self._of_others()
        names = list(dict.fromkeys(point.label for point in self.points))
        for index, label in enumerate(names):
            drawn = [
                (point.epoch, kl)
                for point, kl in zip(self.points, others, strict=True)
                if point.label == label and kl
            ]
            places = beside([epoch for epoch, _ in drawn], index, len(names))
            low, high, mean = ([of(kl) for _, kl in drawn] for of in (min, max, fmean))
            axes.vlines(places, low, high, color=f"C{index}", alpha=0.3, linewidth=5)
            axes.plot(places, mean, "o-", color=f"C{index}", label=f"{label}: mean")
        axes.plot([], [], color="grey", linewidth=5, alpha=0.3, label="least to greatest")
        if any(value > 0 for kl in others for value in kl):
            axes.set_yscale("log")
        axes.margins(y=0.3)  # room for the legend
        whole_numbers(axes)
        logits = "" if self.normalize == "none" else f" by {self.normalize} logits"
        finish(
            axes,
            title=f"KL of {len(others[0])} subnets{logits}, batch-norm statistics {whose(self.statistics)}",
            x="epochs done at the checkpoint",
            y="KL(main network || subnet), nats per image",
        )

    def _of_others(self) -> list[list[float]]:
        """Of each point, the KL of the subnets proper."""
        return [of_others(point.kl, self.depths, self.full) for point in self.points]


def _summary(kl: Sequence[float]) -> list[str]:
    """Mean, least and greatest."""
    return [f"{fmean(kl):.3g}" if kl else "-", *extent(kl, ".3g")]


def kl_to_first(logits: Sequence[Tensor]) -> Tensor:
    """KL(softmax(first) || softmax(each)) of logits [B, C], summed over the images: [K]."""
    main = F.log_softmax(logits[0], dim=1)
    return stack(
        [F.kl_div(F.log_softmax(each, dim=1), main, reduction="sum", log_target=True) for each in logits]
    )


def measure(runs: Sequence[Path], options: KlOptions) -> Kl:
    """Run the subnets of each checkpoint in one walk beside its main network.

    Raises:
        RunError: runs that cannot be opened, or are of different networks.
    """
    full: Depths = ()
    depths: list[Depths] = []
    points = []
    for source, run in open_each(_checkpoints(runs, options), options):
        chosen = space_of(run, options)
        full = run.network.depths
        depths = [depths_of(subnet, len(full)) for subnet in chosen]
        kl = _distances(run, chosen, options)
        epoch, step = source.trained.epoch or 0, source.trained.step or 0
        points.append(Point(source.label, str(source.trained.path), epoch, step, kl))
    return Kl(options.statistics, options.normalize, full, depths, points)


def _checkpoints(runs: Sequence[Path], options: KlOptions) -> list[Source]:
    """All checkpoints of the runs and files that are given, each step of a run once, in order.

    Raises:
        CheckpointError: there is none, or one is damaged.
        ConfigError: they are of different networks, or one does not tell its step.
    """
    files = [path for run in runs for path in _files(run)]
    folders = list(dict.fromkeys(folder_of(path).resolve() for path in files))
    label = dict(zip(folders, labels(folders), strict=True))
    sources = [
        Source(
            label[folder_of(path).resolve()],
            open_trained(path, recipe_name=options.recipe, order=options.classes),
        )
        for path in files
    ]
    check_alike(sources)
    order = list(label.values())
    different = {}
    for source in reversed(sources):
        step = source.trained.step
        if step is None:
            raise ConfigError(f"RUN is {source.trained.path}; allowed here: runs and their checkpoints")
        different[order.index(source.label), step] = source
    return [different[place] for place in sorted(different)]


def _files(run: Path) -> list[Path]:
    file, key = split_key(run)
    if key or os.path.isfile(file):  # unlike Path.is_file, never raises
        return [run]
    archive = Archive(run / "checkpoints")
    complete = archive.complete()
    return [*complete, *([archive.best] if os.path.exists(archive.best) else [])] or [archive.chosen("last")]


def _distances(run: Opened, chosen: Sequence[Subnet], options: KlOptions) -> list[float]:
    subnets = [run.network.full, *chosen]

    def measured(logits: list[Tensor], targets: Tensor) -> Tensor:
        return kl_to_first([normalize_logits(each, options.normalize, 1.0) for each in logits])

    own = run.statistics(subnets, options.statistics)
    sums, images = tally(
        run.network, subnets, run.validation(), run.precision, measured, (len(subnets),), own
    )
    return (sums[1:] / images).clamp(min=0).tolist()  # rounding can bring 0 below it
