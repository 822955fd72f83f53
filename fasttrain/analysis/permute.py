"""Permuting blocks within the stages of the trained network (ST Figure 6c, after Veit et al. 2016).

As there, blocks that change the shape of their input stay where they are, others swap places within their
stage, and the x axis is Kendall's tau between the new order of all blocks and the old.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..flops import meta_network, side_costs
from ..models import StagedNetwork
from ..randomness import Stream, generator
from ..subnets import BlockRef, Subnet
from .options import MOST_SAMPLES, MOST_SEED, AlterationOptions, check_least
from .output import Rows, finish, whose
from .runs import find, open_each

Order = tuple[int, ...]
"""For each place in the network, the block that runs there, by its place in the intact network."""


@dataclass(frozen=True, kw_only=True)
class PermuteOptions(AlterationOptions):
    """Top-1 with blocks swapped within their stages."""

    samples: int = 16
    """Orders drawn by 1, 2, ... random swaps each; all orders where there are no more."""
    seed: int = 0
    """Of the drawn orders."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("samples", self.samples, 1, MOST_SAMPLES)
        check_least("seed", self.seed, 0, MOST_SEED)


@dataclass(frozen=True, slots=True)
class Network:
    """A run: its label, Top-1 of the intact network and of each order, percent."""

    label: str
    intact: float
    top1: list[float]


@dataclass(frozen=True, slots=True)
class Permute:
    """Top-1 of networks with permuted blocks.

    Attributes:
        statistics: whose batch-norm statistics.
        orders: which block runs at each place, by its place in the intact network; the intact order first.
        tau: Kendall's rank correlation of each with the intact order.
        swaps: the least number of swaps that make each.
        networks: the runs.
    """

    statistics: str
    orders: list[Order]
    tau: list[float]
    swaps: list[int]
    networks: list[Network]

    def rows(self) -> Rows:
        """Mean Top-1 over the number of swaps."""
        numbers = sorted(set(self.swaps))
        cells = []
        for network in self.networks:
            groups = _grouped(self.swaps, network.top1)
            cells.append([network.label, *(fmean(groups[number]) for number in numbers)])
        return Rows(["mean Top-1, %; swaps:", *map(str, numbers)], cells)

    def draw(self, figure: Any) -> None:
        """Each order's Top-1 over Kendall's tau, and their mean at each."""
        axes = figure.add_subplot()
        for index, network in enumerate(self.networks):
            colour = f"C{index}"
            groups = _grouped(self.tau, network.top1)
            axes.scatter(
                self.tau, network.top1, s=22, alpha=0.5, color=colour, label=f"{network.label}: each order"
            )
            x = sorted(groups)
            axes.plot(x, [fmean(groups[tau]) for tau in x], color=colour, label=f"{network.label}: mean")
        axes.invert_xaxis()
        finish(
            axes,
            title=f"Blocks permuted within stages, batch-norm statistics {whose(self.statistics)}",
            x="Kendall's tau between the order of the blocks and the intact one",
        )


def _grouped(keys: Sequence[float], values: Sequence[float]) -> dict[float, list[float]]:
    groups: dict[float, list[float]] = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        groups[key].append(value)
    return groups


def kendall_tau(order: Sequence[int]) -> float:
    """Rank correlation of a permutation with the identity: pairs in order less pairs not, over all pairs."""
    pairs = list(itertools.combinations(order, 2))
    return sum(1 if a < b else -1 for a, b in pairs) / len(pairs) if pairs else 1.0


def swaps_of(order: Sequence[int]) -> int:
    """The least number of swaps that make a permutation: its length less its cycles."""
    seen: set[int] = set()
    cycles = 0
    for place in range(len(order)):
        cycles += place not in seen
        while place not in seen:
            seen.add(place)
            place = order[place]
    return len(order) - cycles


def movable(network: StagedNetwork, name: str, side: int) -> list[list[int]]:
    """Of each stage the places, in the whole network, of the blocks that keep the shape of their input.

    Args:
        network: the run's.
        name: of its architecture.
        side: of the images, pixels.
    """
    shapes = side_costs(meta_network(name, network.num_classes), side).inputs
    stages: list[list[int]] = [[] for _ in network.depths]
    for place, ref in enumerate(network.full):
        following = shapes.get((ref.stage, ref.block + 1))
        if ref.block or following == shapes[ref.stage, ref.block]:
            stages[ref.stage].append(place)
    return stages


def draw_orders(stages: Sequence[Sequence[int]], length: int, samples: int, seed: int) -> list[Order]:
    """Different orders of all blocks, the intact one first: all, or those that random swaps make.

    Args:
        stages: the places within which blocks may move.
        length: number of blocks.
        samples: orders drawn for each number of swaps, as many as there can be.
        seed: of the draws.
    """
    intact = tuple(range(length))
    furthest = sum(len(stage) - 1 for stage in stages if stage)
    if math.prod(math.factorial(len(stage)) for stage in stages) <= samples * furthest + 1:
        each_stage = [list(itertools.permutations(stage)) for stage in stages]
        return sorted(_placed(intact, stages, choice) for choice in itertools.product(*each_stage))
    orders = {intact: None}
    pairs = [pair for stage in stages for pair in itertools.combinations(stage, 2)]
    for number in range(1, furthest + 1):
        rng = generator(seed, Stream.ANALYSIS, step=number)
        for _ in range(samples):
            order = list(intact)
            for pick in rng.integers(len(pairs), size=number):
                a, b = pairs[pick]
                order[a], order[b] = order[b], order[a]
            orders.setdefault(tuple(order))
    return list(orders)


def _placed(intact: Order, stages: Sequence[Sequence[int]], choice: Sequence[Sequence[int]]) -> Order:
    order = np.array(intact)
    for places, blocks in zip(stages, choice, strict=True):
        order[list(places)] = blocks
    return tuple(order.tolist())


def permuted(full: Sequence[BlockRef], order: Order) -> Subnet:
    """The network with its blocks in another order."""
    return tuple(full[block] for block in order)


def measure(runs: Sequence[Path], options: PermuteOptions) -> Permute:
    """Evaluate each run's network with its blocks in other orders, the same for all, in one walk.

    Raises:
        RunError: runs that cannot be opened, are of different networks, or have no blocks to swap.
    """
    networks = []
    for source, run in open_each(find(runs, options), options):
        network, name = run.network, run.config.model.name
        stages = movable(network, name, run.config.data.val_crop)
        if max(map(len, stages)) < 2:
            raise ConfigError(
                f"{source.label} is a {name}, no stage of which has two blocks that can swap places"
            )
        orders = draw_orders(stages, len(network.full), options.samples, options.seed)
        (intact,) = run.top1([network.full], "main")
        top1 = run.top1([permuted(network.full, order) for order in orders], options.statistics)
        networks.append(Network(source.label, intact, top1))
    return Permute(
        options.statistics,
        orders,
        [kendall_tau(order) for order in orders],
        [swaps_of(order) for order in orders],
        networks,
    )
