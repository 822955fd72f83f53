"""Accuracy of every subnet, and network loafing (ST Figure 1).

The figure's subject is the paper's: how far subnets fall behind networks of their size that were trained
individually (`--alone`), and by how much less after stimulative training. Its axes are ours: Top-1 over the
subnet's multiply-adds. An individually trained network is either a run of a smaller network of the same
blocks (cifar_resnet20 against subnets of cifar_resnet56), or a run whose one subnet alone was trained, on
the ground truth: `--method.main-weight 0 --method.supervision ce_target --method.space 2,3,3`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from ..errors import ConfigError
from ..flops import ForwardCosts, meta_network
from ..opening import Opened
from ..subnets import Depths, Subnet, depths_of, ordered_space, ordered_subnet
from .loafing import Series, draw_loafing
from .options import SubnetOptions, check_least
from .output import Rows, finish, whose
from .runs import Source, find, open_each, space_of


@dataclass(frozen=True, kw_only=True)
class SubnetsOptions(SubnetOptions):
    """Accuracy of every subnet; mean, deviation, the best within a budget, and individually trained ones."""

    budget: float = 0.0
    """Find the best subnet of at most so many GFLOPs per image: 1e9 multiply-adds, forward; 0: no budget."""
    alone: tuple[str, ...] = ()
    """Runs of individually trained subnets: of a smaller network of the same blocks, or with
    method.main-weight 0, method.supervision ce_target and a space of one subnet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("budget", self.budget, 0)


@dataclass(frozen=True, slots=True)
class Network:
    """A run's main network and subnets.

    Attributes:
        label: of the run.
        epoch: epochs done.
        main: Top-1 of the main network, percent.
        mean: of the subnets' Top-1.
        deviation: of the subnets' Top-1.
        worst: the least of them.
        depths: blocks per stage of each subnet.
        top1: of each, percent.
        gflops: of each, 1e9 multiply-adds per image.
        within_budget: index of the most accurate subnet within the budget; None without one.
    """

    label: str
    epoch: int | None
    main: float
    mean: float
    deviation: float
    worst: float
    depths: list[Depths]
    top1: list[float]
    gflops: list[float]
    within_budget: int | None


@dataclass(frozen=True, slots=True)
class Alone:
    """An individually trained subnet: its run, blocks per stage, Top-1 in percent, 1e9 multiply-adds."""

    label: str
    depths: Depths
    top1: float
    gflops: float


@dataclass(frozen=True, slots=True)
class Subnets:
    """Subnets of each run, and individually trained ones.

    Attributes:
        statistics: whose batch-norm statistics the subnets ran with.
        budget: GFLOPs; 0: none.
        networks: the runs.
        alone: the individually trained subnets.
    """

    statistics: str
    budget: float
    networks: list[Network]
    alone: list[Alone]

    def rows(self) -> Rows:
        """Main network and subnets; the best within the budget; those that were trained individually."""
        columns = ["Top-1, %", "main network", "subnets", "mean", "deviation", "worst"]
        columns += ["best within budget"] if self.budget else []
        cells = [
            [n.label, n.main, len(n.top1), n.mean, n.deviation, n.worst, *self._best(n)]
            for n in self.networks
        ]
        for one in self.alone:
            gaps = [
                f"{one.top1 - n.top1[n.depths.index(one.depths)]:+.2f} over {n.label}'s"
                for n in self.networks
                if one.depths in n.depths
            ]
            blank = [""] * (len(columns) - 3)
            cells.append([f"{one.label}, alone: {_words(one.depths)}", one.top1, ", ".join(gaps), *blank])
        return Rows(columns, cells)

    def _best(self, network: Network) -> list[str]:
        best = network.within_budget
        if not self.budget:
            return []
        if best is None:
            return [f"none (least {min(network.gflops):.3g} GFLOPs)"]
        return [
            f"{network.top1[best]:.2f}: {_words(network.depths[best])}, {network.gflops[best]:.3g} GFLOPs"
        ]

    def draw(self, figure: Any) -> None:
        """Top-1 of each subnet over its multiply-adds."""
        axes = figure.add_subplot()
        series = [Series(n.label, n.main, n.top1, n.mean, n.deviation, n.gflops) for n in self.networks]
        title = f"Every subnet on its own, batch-norm statistics {whose(self.statistics)}"
        draw_loafing(axes, series)
        if self.alone:
            x, y = [one.gflops for one in self.alone], [one.top1 for one in self.alone]
            axes.scatter(x, y, s=70, marker="*", color="black", zorder=3, label="individually trained")
        if self.budget:
            axes.axvline(self.budget, color="grey", linewidth=1, label=f"budget {self.budget:g} GFLOPs")
            best = [
                (n.gflops[n.within_budget], n.top1[n.within_budget])
                for n in self.networks
                if n.within_budget is not None
            ]
            if best:
                ring = {"facecolor": "none", "edgecolor": "black", "label": "best within the budget"}
                axes.scatter(*zip(*best, strict=True), s=90, zorder=3, **ring)
        finish(axes, title=title, x="GFLOPs per image (1e9 multiply-adds, forward)")


def measure(runs: Sequence[Path], options: SubnetsOptions) -> Subnets:
    """Evaluate each run's subnets in one walk.

    Raises:
        RunError: runs that cannot be opened, or are of different networks.
    """
    sources = find(runs, options)
    singles = _singles(options)
    networks: list[Network] = []
    shapes: dict[str, Any] = {}
    for source, run in open_each(sources, options):
        networks.append(_network(source, run, options))
        shapes = shapes or {name: value.shape for name, value in run.network.state_dict().items()}
    alone = [_alone(source, run, shapes) for source, run in open_each(singles, options, True)]
    return Subnets(options.statistics, options.budget, networks, alone)


def _singles(options: SubnetsOptions) -> list[Source]:
    """The runs of individually trained subnets.

    Where the main network was not trained, the best checkpoint is not the subnet's best: the last counts.
    """
    runs = [Path(run) for run in options.alone]
    chosen = find(runs, options, alike=False)
    last = find(runs, replace(options, checkpoint="last"), alike=False)
    return [b if b.config.method.main_weight else a for b, a in zip(chosen, last, strict=True)]


def costs_of(source: Source, run: Opened) -> ForwardCosts:
    """Multiply-adds of a run's network on its validation images."""
    network = meta_network(run.config.model.name, source.trained.outputs)
    return ForwardCosts(network, run.config.data.val_crop)


def _network(source: Source, run: Opened, options: SubnetsOptions) -> Network:
    chosen = space_of(run, options)
    main = run.top1([run.network.full], "main")[0]
    top1 = run.top1(chosen, options.statistics)
    costs = costs_of(source, run)
    gflops = [costs.of(subnet) / 1e9 for subnet in chosen]
    return Network(
        label=source.label,
        epoch=source.trained.epoch,
        main=main,
        mean=fmean(top1),
        deviation=pstdev(top1),
        worst=min(top1),
        depths=[depths_of(subnet, len(run.network.depths)) for subnet in chosen],
        top1=top1,
        gflops=gflops,
        within_budget=best_within(options.budget, gflops, top1) if options.budget else None,
    )


def best_within(budget: float, costs: Sequence[float], top1: Sequence[float]) -> int | None:
    """Index of the most accurate subnet within a budget, the cheapest of equal ones; None: none is."""
    affordable = [i for i, cost in enumerate(costs) if cost <= budget]
    return max(affordable, key=lambda i: (top1[i], -costs[i]), default=None)


def _alone(source: Source, run: Opened, shapes: dict[str, Any]) -> Alone:
    """An individually trained subnet, with statistics of its own.

    Raises:
        ConfigError: its blocks are not those of the network with these parameters, or it is no single subnet.
    """
    own = {name: value.shape for name, value in run.network.state_dict().items()}
    strange = sorted(name for name, shape in own.items() if shapes.get(name) != shape)
    if strange:
        raise ConfigError(
            f"--alone {source.label} is a {source.config.model.name}, whose {strange[0]} is not the analysed "
            "network's; allowed: runs of the same network, or of one with fewer of its blocks"
        )
    subnet, kind = _trained(source, run)
    depths = depths_of(subnet, len(run.network.depths))
    gflops = costs_of(source, run).of(subnet) / 1e9
    return Alone(source.label, depths, run.top1([subnet], kind)[0], gflops)


def _trained(source: Source, run: Opened) -> tuple[Subnet, str]:
    """Which subnet a run trained individually, and whose batch-norm statistics fit it."""
    method, network = source.config.method, run.network
    if method.name == "common":
        return network.full, "main"
    space = ordered_space(method.space, network.depths)
    single = method.sampling == "ordered" and len(space) == 1
    if not (single and method.main_weight == 0 and method.supervision == "ce_target"):
        raise ConfigError(
            f"--alone {source.label} trained more than one network; allowed: common training, or "
            "method.main-weight 0, method.supervision ce_target and a method.space of one subnet"
        )
    return ordered_subnet(space.depths), "reestimated"


def _words(depths: Depths) -> str:
    return "-".join(map(str, depths))
