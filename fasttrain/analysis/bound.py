"""How far a subnet can be from the main network by its KL distance (the bound of equation 12).

The papers' text could not be looked up, so this is the bound that the objective of stimulative training
gives by Pinsker's and Jensen's inequalities. With p(y) and q(y) the probabilities that the main network and a
subnet give to an image's class, and E the mean over the images,

    |E p(y) - E q(y)|  <=  E |p(y) - q(y)|  <=  sqrt(E KL(p || q) / 2):

training that lowers the KL distance leaves a subnet no room to be much worse than the main network, nor the
main network to be much better than what its subnets support. The file has both sides of each subnet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, stack

from ..evaluation import tally
from ..opening import Opened
from ..subnets import Depths, depths_of
from .kl import kl_to_first
from .options import SubnetOptions
from .output import Rows, extent, finish, of_others, whose
from .runs import Source, find, open_each, space_of


@dataclass(frozen=True, kw_only=True)
class BoundOptions(SubnetOptions):
    """Gap of each subnet to the main network in the probability of the right class, bounded by its KL."""


@dataclass(frozen=True, slots=True)
class Network:
    """A run and its subnets.

    Attributes:
        label: of the run.
        main: mean probability that the main network gives to the right class.
        full: blocks per stage of the main network, whose gap to itself no summary counts.
        depths: of each subnet.
        gap: the main network's mean probability less each subnet's.
        kl: mean KL(main network || subnet) of each, nats.
        bound: of the gap's size, sqrt(kl / 2), at most 1.
    """

    label: str
    main: float
    full: Depths
    depths: list[Depths]
    gap: list[float]
    kl: list[float]
    bound: list[float]


@dataclass(frozen=True, slots=True)
class Bound:
    """Gaps and their bounds; `statistics`: whose batch-norm statistics the networks ran with."""

    statistics: str
    networks: list[Network]

    def rows(self) -> Rows:
        """The largest gap and the largest bound of each run."""
        cells = [
            [n.label, f"{n.main:.3f}", *(extent(values, ".3f")[1] for values in _others(n))]
            for n in self.networks
        ]
        columns = [
            "probability of the right class",
            "main network",
            "largest gap of a subnet",
            "largest bound",
        ]
        return Rows(columns, cells)

    def draw(self, figure: Any) -> None:
        """Each subnet's gap over its bound, below the diagonal."""
        axes = figure.add_subplot()
        for index, network in enumerate(self.networks):
            axes.scatter(
                *_others(network)[::-1],
                s=26,
                alpha=0.7,
                color=f"C{index}",
                label=f"{network.label} (main network {network.main:.2f})",
            )
        most = max(bound for network in self.networks for bound in network.bound) or 1.0
        axes.plot([0, most], [0, most], color="black", linewidth=1, label="the bound itself")
        finish(
            axes,
            title=f"Subnets and their bound, batch-norm statistics {whose(self.statistics)}",
            x="bound: square root of half the mean KL(main network || subnet)",
            y="gap in the mean probability of the right class",
        )


def _others(network: Network) -> list[list[float]]:
    """Sizes of the gaps, and bounds, of the subnets proper."""
    sizes = list(map(abs, network.gap))
    return [of_others(values, network.depths, network.full) for values in (sizes, network.bound)]


def sides(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Of each network's logits [B, C], summed over images: KL of the first to it, probability of the class.

    Returns:
        [K, 2].
    """
    right = stack([each.softmax(dim=1).gather(1, targets[:, None]).sum() for each in logits])
    return stack((kl_to_first(logits), right), dim=1).double()


def bound_of(kl: float) -> float:
    """Pinsker's bound of a difference of probabilities; none exceeds 1."""
    return min(1.0, math.sqrt(max(kl, 0.0) / 2))


def measure(runs: Sequence[Path], options: BoundOptions) -> Bound:
    """Run each run's networks in one walk.

    Raises:
        RunError: runs that cannot be opened, or are of different networks.
    """
    pairs = open_each(find(runs, options), options)
    return Bound(options.statistics, [_network(source, run, options) for source, run in pairs])


def _network(source: Source, run: Opened, options: BoundOptions) -> Network:
    subnets = [run.network.full, *space_of(run, options)]
    own = run.statistics(subnets, options.statistics)
    shape = (len(subnets), 2)
    sums, images = tally(run.network, subnets, run.validation(), run.precision, sides, shape, own)
    kl, right = (sums / images).T.tolist()
    return Network(
        label=source.label,
        main=right[0],
        full=run.network.depths,
        depths=[depths_of(subnet, len(run.network.depths)) for subnet in subnets[1:]],
        gap=[right[0] - each for each in right[1:]],
        kl=kl[1:],
        bound=[bound_of(each) for each in kl[1:]],
    )
