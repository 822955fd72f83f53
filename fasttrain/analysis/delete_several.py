"""Deleting several blocks of the trained network (ST Figure 6b, after Veit et al. 2016)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..randomness import Stream, generator
from ..subnets import BlockRef
from .deletion import deletable, name_of, without
from .options import MOST_SAMPLES, MOST_SEED, AlterationOptions, check_least
from .output import Rows, beside, finish, whole_numbers, whose
from .runs import find, open_each


@dataclass(frozen=True, kw_only=True)
class DeleteSeveralOptions(AlterationOptions):
    """Top-1 without 1, 2, ... blocks; of deleted blocks the shortcuts alone run."""

    samples: int = 32
    """Combinations of each number of blocks: all where there are no more, else so many drawn; 0: all."""
    most: int = 0
    """Delete up to so many blocks; 0: up to all that have a shortcut."""
    seed: int = 0
    """Of the drawn combinations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("samples", self.samples, 0, MOST_SAMPLES)
        check_least("most", self.most, 0)
        check_least("seed", self.seed, 0, MOST_SEED)


@dataclass(frozen=True, slots=True)
class Network:
    """A run: its label, Top-1 of the intact network and of each combination, percent."""

    label: str
    intact: float
    top1: list[list[float]]

    def means(self) -> list[float]:
        """Over the combinations of each number of blocks, the intact network first."""
        return [self.intact, *map(fmean, self.top1)]


@dataclass(frozen=True, slots=True)
class DeleteSeveral:
    """Top-1 without combinations of blocks.

    Attributes:
        statistics: whose batch-norm statistics.
        combinations: the deleted blocks of each combination, by their number, 1 first.
        networks: the runs.
    """

    statistics: str
    combinations: list[list[list[str]]]
    networks: list[Network]

    def rows(self) -> Rows:
        """Mean Top-1 over the number of deleted blocks, ten numbers at most."""
        numbers = range(len(self.combinations) + 1)
        shown = sorted({round(i) for i in np.linspace(0, numbers[-1], min(10, len(numbers)))})
        cells = [[n.label, *(n.means()[number] for number in shown)] for n in self.networks]
        return Rows(["mean Top-1, %; deleted:", *map(str, shown)], cells)

    def draw(self, figure: Any) -> None:
        """Mean, quartiles and range over the number of deleted blocks."""
        axes = figure.add_subplot()
        numbers = range(len(self.combinations) + 1)
        for index, network in enumerate(self.networks):
            colour, groups = f"C{index}", [[network.intact], *network.top1]
            low, high = zip(*(np.quantile(group, (0.25, 0.75)) for group in groups), strict=True)
            places = beside(numbers, index, len(self.networks))
            axes.fill_between(numbers, [*map(min, groups)], [*map(max, groups)], color=colour, alpha=0.12)
            axes.vlines(places, low, high, color=colour, alpha=0.5, linewidth=5)
            axes.plot(places, network.means(), "o-", color=colour, label=f"{network.label}: mean")
        axes.plot([], [], color="grey", linewidth=5, alpha=0.5, label="middle half of the combinations")
        axes.fill_between([], [], color="grey", alpha=0.2, label="least to greatest")
        whole_numbers(axes)
        finish(
            axes,
            title=f"Several blocks deleted, batch-norm statistics {whose(self.statistics)}",
            x="deleted blocks",
        )


def combinations(
    blocks: Sequence[BlockRef], number: int, samples: int, seed: int
) -> list[tuple[BlockRef, ...]]:
    """All combinations of so many blocks, or `samples` different ones, drawn from the seed; 0: all."""
    if not samples or math.comb(len(blocks), number) <= samples:
        return list(itertools.combinations(blocks, number))
    rng = generator(seed, Stream.ANALYSIS, step=number)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < samples:
        drawn.setdefault(tuple(sorted(rng.choice(len(blocks), number, replace=False).tolist())))
    return [tuple(blocks[i] for i in indices) for indices in sorted(drawn)]


def measure(runs: Sequence[Path], options: DeleteSeveralOptions) -> DeleteSeveral:
    """Evaluate each run's network without combinations of its blocks, the same for all, in one walk.

    Raises:
        RunError: runs that cannot be opened, or are of different networks.
    """
    networks = []
    for source, run in open_each(find(runs, options), options):
        blocks = deletable(run.network)
        most = min(options.most or len(blocks), len(blocks))
        number = sum(math.comb(len(blocks), k) for k in range(1, most + 1))
        if not options.samples and number > MOST_SAMPLES:
            raise ConfigError(
                f"--samples is 0: all {number} combinations of up to {most} of {len(blocks)} blocks; "
                f"allowed: up to {MOST_SAMPLES} in all (--most), or --samples above 0"
            )
        groups = [combinations(blocks, k, options.samples, options.seed) for k in range(1, most + 1)]
        subnets = [without(run.network, deleted) for group in groups for deleted in group]
        (intact,) = run.top1([run.network.full], "main")
        found = iter(run.top1(subnets, options.statistics))
        networks.append(
            Network(source.label, intact, [list(itertools.islice(found, len(g))) for g in groups])
        )
    names = [[[name_of(ref) for ref in deleted] for deleted in group] for group in groups]
    return DeleteSeveral(options.statistics, names, networks)
