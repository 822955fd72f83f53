"""`python -m bench walk`: evaluating all subnets of a space in one walk over their tree, or one by one.

On synthetic images, without a loader: the ratio is that of what the network runs. With re-estimated
statistics each walk, or each subnet, also has a training-mode pass over as many images.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from fasttrain.errors import ConfigError
from fasttrain.evaluation import estimate_statistics, evaluate
from fasttrain.hardware import Precision
from fasttrain.models import StagedNetwork, create_model
from fasttrain.subnets import PrefixTree, Subnet, ordered_space

from . import measure
from .arguments import Parser, check_least
from .rows import PLACE, Rows, default_output, environment

COLUMNS = (
    "bench",
    "model",
    "space",
    "crop",
    "batch",
    "precision",
    "statistics",
    "metric",
    "value",
    "unit",
    *PLACE,
)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark.

    Raises:
        ConfigError: an option's value that is not allowed.
    """
    options = _parser().parse_args(list(argv))
    device = measure.choose_device(options.device)
    precision = Precision(measure.choose_precision("auto", device), device.type)
    check_least(options, batch=1, sample=1, rounds=1)
    torch.manual_seed(0)
    network = create_model(options.model, 1000).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.crop < network.reduction:
        raise ConfigError(f"--crop is {options.crop}; allowed: at least {network.reduction} pixels")
    subnets = list(ordered_space(options.space, network.depths))
    common = {"bench": "walk", "model": options.model, "space": options.space, "crop": options.crop}
    common |= {"batch": options.batch, "precision": precision.name} | environment(device)
    rows = Rows(options.output or default_output("walk", device), COLUMNS, common)
    for statistics in ("main", "reestimated") if options.statistics == "both" else (options.statistics,):
        measure_walk(rows, network, subnets, precision, device, statistics, options)


def measure_walk(
    rows: Rows,
    network: StagedNetwork,
    subnets: Sequence[Subnet],
    precision: Precision,
    device: torch.device,
    statistics: str,
    options: argparse.Namespace,
) -> None:
    """Time both ways in turn; of the subnets one by one a random sample, whose mean stands for all."""
    images = torch.randn(options.batch, 3, options.crop, options.crop).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    batches = [(images, torch.arange(options.batch, device=device) % 1000)]
    # an even stride would take stages at one depth alone
    chosen = random.Random(0).sample(subnets, min(options.sample, len(subnets)))

    def judge(some: Sequence[Subnet]) -> None:
        own = estimate_statistics(network, some, [images], precision) if statistics == "reestimated" else None
        evaluate(network, some, batches, precision, own)

    def seconds(some: Sequence[Subnet]) -> float:
        return measure.seconds(device, lambda: judge(some))

    def alone() -> float:
        return sum(seconds([subnet]) for subnet in chosen) / len(chosen) * len(subnets)

    seconds(chosen[:1])
    walks, alones = [], []
    for _ in range(options.rounds):
        walks.append(seconds(subnets))
        alones.append(alone())
        rows.add(statistics=statistics, metric="walk", value=walks[-1], unit="s")
        rows.add(statistics=statistics, metric="one_by_one", value=alones[-1], unit="s", n=len(chosen))
        rows.write()
    calls = sum(map(len, subnets))
    tree = len(PrefixTree(subnets))
    ratio = fmean(alones) / fmean(walks)
    rows.add(statistics=statistics, metric="ratio", value=ratio, unit="", n=options.rounds)
    rows.add(statistics=statistics, metric="block_ratio", value=calls / tree, unit="")
    rows.write()
    print(
        f"{len(subnets)} subnets, statistics {statistics}: one walk {fmean(walks):.2f} s, one by one "
        f"{fmean(alones):.2f} s ({len(chosen)} of them measured), {ratio:.2f} times as long; "
        f"{calls} blocks against {tree}: {calls / tree:.2f}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench walk", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is a GPU")
    add("--model", default="resnet50", help="a network of fasttrain (%(default)s)")
    add("--space", default="default", help="sampling space (%(default)s)")
    add("--crop", type=int, default=96, help="side of the images, pixels (%(default)s)")
    add("--batch", type=int, default=16, help="images (%(default)s)")
    kinds = ("main", "reestimated", "both")
    add("--statistics", choices=kinds, default="both", help="batch norm's, of the subnets (%(default)s)")
    add("--sample", type=int, default=12, help="subnets evaluated one by one (%(default)s)")
    add("--rounds", type=int, default=2, help="how often (%(default)s)")
    add("-o", "--output", type=Path, help="CSV file (default: bench/results/<device>/walk.csv)")
    return parser
