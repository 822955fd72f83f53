"""Inter-stage layer counts (ST++ Figure 7): Top-1 over the blocks that a subnet keeps in each stage.

Which stages can lose blocks decides which spaces are good to sample from (ST++ section on inter-stage
sampling). The papers' text could not be looked up; here each stage has a panel with the mean over all subnets
that keep so many blocks there, and the subnet that is cut in this stage alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from ..subnets import Depths, depths_of
from .options import SubnetOptions
from .output import TOP1, Rows, beside, whose
from .runs import find, open_each, space_of


@dataclass(frozen=True, kw_only=True)
class LayersOptions(SubnetOptions):
    """Top-1 of the subnets over the blocks kept in each stage."""


@dataclass(frozen=True, slots=True)
class Count:
    """Subnets that keep so many blocks in a stage.

    Attributes:
        label: of the run.
        stage: counted from 1.
        blocks: kept in it.
        subnets: how many do so.
        mean: of their Top-1, percent.
        deviation: likewise.
        least: of their Top-1, percent.
        greatest: likewise.
        others_whole: Top-1 of the one that keeps the most blocks in all other stages; None if not evaluated.
    """

    label: str
    stage: int
    blocks: int
    subnets: int
    mean: float
    deviation: float
    least: float
    greatest: float
    others_whole: float | None


@dataclass(frozen=True, slots=True)
class Layers:
    """Top-1 over the blocks kept; `statistics`: whose batch-norm statistics the subnets ran with."""

    statistics: str
    counts: list[Count]

    def rows(self) -> Rows:
        """What dropping blocks of one stage costs on average: most kept against least."""
        cells = []
        for label, stage in dict.fromkeys((count.label, count.stage) for count in self.counts):
            counts = [count for count in self.counts if (count.label, count.stage) == (label, stage)]
            least, most = counts[0], counts[-1]
            cells.append(
                [
                    f"{label}, stage {stage}",
                    f"{least.blocks}: {least.mean:.2f}",
                    f"{most.blocks}: {most.mean:.2f}",
                    f"{most.mean - least.mean:+.2f}",
                ]
            )
        return Rows(["mean Top-1, %", "fewest blocks", "most blocks", "difference"], cells)

    def draw(self, figure: Any) -> None:
        """A panel for each stage."""
        stages = sorted({count.stage for count in self.counts})
        names = list(dict.fromkeys(count.label for count in self.counts))
        figure.set_size_inches(1.2 + 2.7 * len(stages), 4.2)
        panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
        for panel, stage in zip(panels, stages, strict=True):
            for index, name in enumerate(names):
                counts = [count for count in self.counts if (count.label, count.stage) == (name, stage)]
                places = beside([count.blocks for count in counts], index, len(names))
                low, high = [count.least for count in counts], [count.greatest for count in counts]
                panel.vlines(places, low, high, color=f"C{index}", alpha=0.3, linewidth=5)
                panel.plot(places, [c.mean for c in counts], "o-", color=f"C{index}", label=f"{name}: mean")
                whole = [
                    (place, count.others_whole)
                    for place, count in zip(places, counts, strict=True)
                    if count.others_whole is not None
                ]
                panel.plot(
                    *zip(*whole, strict=True),
                    "s--",
                    markersize=5,
                    alpha=0.7,
                    color=f"C{index}",
                    label=f"{name}: other stages whole",
                )
            panel.plot([], [], color="grey", linewidth=5, alpha=0.3, label="least to greatest")
            panel.set_title(f"stage {stage}", fontsize=10)
            panel.set_xlabel("blocks kept")
            panel.set_xticks(sorted({count.blocks for count in self.counts if count.stage == stage}))
            panel.grid(alpha=0.3)
        panels[0].set_ylabel(TOP1)
        handles, texts = panels[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=2, fontsize=8)
        figure.suptitle(
            f"Blocks kept in each stage, batch-norm statistics {whose(self.statistics)}", fontsize=11
        )


def counts_of(label: str, depths: Sequence[Depths], top1: Sequence[float]) -> list[Count]:
    """Group subnets by the blocks that they keep in each stage, fewest first."""
    found = dict(zip(depths, top1, strict=True))
    most = tuple(map(max, zip(*depths, strict=True)))
    counts = []
    for stage in range(len(most)):
        for blocks in sorted({each[stage] for each in depths}):
            own = [accuracy for each, accuracy in found.items() if each[stage] == blocks]
            whole = found.get((*most[:stage], blocks, *most[stage + 1 :]))
            counts.append(
                Count(label, stage + 1, blocks, len(own), fmean(own), pstdev(own), min(own), max(own), whole)
            )
    return counts


def measure(runs: Sequence[Path], options: LayersOptions) -> Layers:
    """Evaluate each run's subnets in one walk.

    Raises:
        RunError: runs that cannot be opened, or are of different networks.
    """
    counts = []
    for source, run in open_each(find(runs, options), options):
        chosen = space_of(run, options)
        depths = [depths_of(subnet, len(run.network.depths)) for subnet in chosen]
        counts += counts_of(source.label, depths, run.top1(chosen, options.statistics))
    return Layers(options.statistics, counts)
