"""Logit amplitude over models (ST++ Figure 4): why KL- aligns the direction of the logits alone.

Networks of different size give logits of different length, which plain KL makes a subnet imitate. Amplitude
is the L2 norm of an image's logits, which ST++ equation 6 divides by; the JSON file also has the deviation
over the classes, which the published code's layer norm divides by. The papers' text could not be looked up:
models are here each run's main network and subnets, over their multiply-adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, stack

from ..evaluation import tally
from ..opening import Opened
from ..subnets import Depths, depths_of
from .options import SubnetOptions
from .output import Rows, extent, finish, of_others, whose
from .runs import Source, find, open_each, space_of
from .subnets import costs_of


@dataclass(frozen=True, kw_only=True)
class AmplitudeOptions(SubnetOptions):
    """L2 norm of the logits of each run's main network and subnets; runs may be of different networks."""


@dataclass(frozen=True, slots=True)
class Network:
    """A run; the first entry of each list is the main network's, the others are its subnets'.

    Attributes:
        label: of the run.
        depths: blocks per stage.
        gflops: 1e9 multiply-adds per image.
        norm: mean L2 norm of an image's logits.
        norm_deviation: its standard deviation over the images.
        class_deviation: mean over the images of the logits' standard deviation over the classes.
    """

    label: str
    depths: list[Depths]
    gflops: list[float]
    norm: list[float]
    norm_deviation: list[float]
    class_deviation: list[float]


@dataclass(frozen=True, slots=True)
class Amplitude:
    """Logit amplitudes; `statistics`: whose batch-norm statistics the networks ran with."""

    statistics: str
    networks: list[Network]

    def rows(self) -> Rows:
        """Main network, and least and greatest of the subnets."""
        cells = [
            [n.label, n.norm[0], n.norm_deviation[0], *extent(_others(n, n.norm))] for n in self.networks
        ]
        columns = ["L2 norm of the logits", "main network", "over images ±", "subnets: least", "greatest"]
        return Rows(columns, cells)

    def draw(self, figure: Any) -> None:
        """Mean norm of each network over its multiply-adds."""
        axes = figure.add_subplot()
        for index, network in enumerate(self.networks):
            colour = f"C{index}"
            axes.scatter(
                _others(network, network.gflops),
                _others(network, network.norm),
                s=26,
                alpha=0.7,
                color=colour,
                label=f"{network.label}: subnets",
            )
            axes.errorbar(
                network.gflops[:1],
                network.norm[:1],
                network.norm_deviation[:1],
                fmt="*",
                markersize=13,
                capsize=4,
                color=colour,
                markeredgecolor="black",
                label=f"{network.label}: main network {network.norm[0]:.2f} ± deviation over images",
            )
        axes.set_ylim(bottom=0)
        finish(
            axes,
            title=f"Logit amplitude over models, batch-norm statistics {whose(self.statistics)}",
            x="GFLOPs per image (1e9 multiply-adds, forward)",
            y="L2 norm of the logits, mean over the images",
        )


def _others(network: Network, values: Sequence[float]) -> list[float]:
    """Of a run's values those of the subnets proper."""
    return of_others(values, network.depths, network.depths[0])


def amplitudes(logits: Sequence[Tensor]) -> Tensor:
    """Of each network's logits [B, C], summed over the images: norm, its square, deviation over C: [K, 3]."""
    norms = [each.norm(dim=1) for each in logits]
    sums = [
        stack((norm.sum(), norm.square().sum(), each.std(dim=1, correction=0).sum()))
        for norm, each in zip(norms, logits, strict=True)
    ]
    return stack(sums).double()


def measure(runs: Sequence[Path], options: AmplitudeOptions) -> Amplitude:
    """Run each run's networks in one walk.

    Raises:
        RunError: runs that cannot be opened.
    """
    sources = find(runs, options, alike=False)
    return Amplitude(options.statistics, [_network(*pair, options) for pair in open_each(sources, options)])


def _network(source: Source, run: Opened, options: AmplitudeOptions) -> Network:
    subnets = [run.network.full, *space_of(run, options)]
    sums, images = tally(
        run.network,
        subnets,
        run.validation(),
        run.precision,
        lambda logits, targets: amplitudes(logits),
        (len(subnets), 3),
        run.statistics(subnets, options.statistics),
    )
    norm, square, deviation = (sums / images).unbind(1)
    costs = costs_of(source, run)
    return Network(
        label=source.label,
        depths=[depths_of(subnet, len(run.network.depths)) for subnet in subnets],
        gflops=[costs.of(subnet) / 1e9 for subnet in subnets],
        norm=norm.tolist(),
        norm_deviation=(square - norm.square()).clamp(min=0).sqrt().tolist(),
        class_deviation=deviation.tolist(),
    )
