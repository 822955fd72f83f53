"""Deleting one block of the trained network at a time (ST Figure 6a, after Veit et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .deletion import deletable, name_of, without
from .options import AlterationOptions
from .output import Rows, finish, whose
from .runs import find, open_each


@dataclass(frozen=True, kw_only=True)
class DeleteOneOptions(AlterationOptions):
    """Top-1 without each block in turn; of the deleted block the shortcut alone runs."""


@dataclass(frozen=True, slots=True)
class Network:
    """A run: its label, Top-1 of the intact network and without each block, percent."""

    label: str
    intact: float
    top1: list[float]


@dataclass(frozen=True, slots=True)
class DeleteOne:
    """Top-1 without each block.

    Attributes:
        statistics: whose batch-norm statistics.
        blocks: stage and block, counted from 1, in order.
        networks: the runs.
    """

    statistics: str
    blocks: list[str]
    networks: list[Network]

    def rows(self) -> Rows:
        """The intact network, the mean over its blocks, and the block that costs most."""
        cells = []
        for network in self.networks:
            least = min(range(len(self.blocks)), key=network.top1.__getitem__)
            mean = sum(network.top1) / len(network.top1)
            cells.append([network.label, network.intact, mean, network.top1[least], self.blocks[least]])
        return Rows(["Top-1, %", "intact", "one block deleted: mean", "least", "without block"], cells)

    def draw(self, figure: Any) -> None:
        """Top-1 over the deleted block, stages apart."""
        axes = figure.add_subplot()
        places = range(len(self.blocks))
        for index, network in enumerate(self.networks):
            axes.plot(
                places, network.top1, "o-", color=f"C{index}", label=f"{network.label}: one block deleted"
            )
            axes.axhline(
                network.intact,
                color=f"C{index}",
                linestyle="--",
                linewidth=1,
                label=f"{network.label}: intact {network.intact:.1f} %",
            )
        for place in places[1:]:
            if self.blocks[place].partition(".")[0] != self.blocks[place - 1].partition(".")[0]:
                axes.axvline(place - 0.5, color="grey", linewidth=0.6)
        step = max(1, len(self.blocks) // 24)
        axes.set_xticks(places[::step], self.blocks[::step], rotation=90 if len(self.blocks) > 12 else 0)
        finish(
            axes,
            title=f"One block deleted, batch-norm statistics {whose(self.statistics)}",
            x="deleted block (stage.block)",
        )


def measure(runs: Sequence[Path], options: DeleteOneOptions) -> DeleteOne:
    """Evaluate each run's network without each of its blocks, in one walk.

    Raises:
        RunError: runs that cannot be opened, or are of different networks.
    """
    networks = []
    for source, run in open_each(find(runs, options), options):
        blocks = deletable(run.network)
        (intact,) = run.top1([run.network.full], "main")
        top1 = run.top1([without(run.network, {ref}) for ref in blocks], options.statistics)
        networks.append(Network(source.label, intact, top1))
    return DeleteOne(options.statistics, [name_of(ref) for ref in blocks], networks)
