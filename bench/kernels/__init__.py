"""`python -m bench kernels`: how fast each fused operation is on a GPU; one module per operation.

First every operation's correctness there (see `bench.checks`); what is wrong is not timed. Then each case's
implementations in turn, with inputs rotating so that none finds its own in the cache. On a CPU, where the
kernels run in Triton's interpreter, whose speed says nothing, correctness is all.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from ..arguments import Parser, check_least, chosen
from ..checks import OPERATIONS, WrongResultError, checks_of, examine
from ..measure import choose_device


def main(argv: Sequence[str]) -> None:
    """Run the benchmark.

    Raises:
        ConfigError: an option's value that is not allowed.
        WrongResultError: an operation that is wrong on this device; the others are measured before.
    """
    options = _parser().parse_args(list(argv))
    device = choose_device(options.device)
    names = chosen("--ops", options.ops, OPERATIONS)
    check_least(options, calls=3)
    wrong = [
        name
        for name in names
        if any(outcome.fault for outcome in examine(name, checks_of(name, device), device))
    ]
    if device.type == "cpu":
        print("A CPU, by Triton's interpreter: correctness is all that is measured, and no file is written.")
    else:
        modules = {n: importlib.import_module(f"bench.kernels.{n}") for n in names if n not in wrong}
        _measure(modules, device, options.calls, options.output)
    if wrong:
        raise WrongResultError(f"wrong on {device}: {', '.join(wrong)}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench kernels", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is a GPU")
    add("--ops", default="", help=f"some of {','.join(OPERATIONS)} (default: all)")
    add("--calls", type=int, default=30, help="timed calls per implementation and case (%(default)s)")
    add("-o", "--output", type=Path, help="CSV file (default: bench/results/<device>/kernels.csv)")
    return parser


def _measure(modules: dict[str, ModuleType], device: torch.device, calls: int, output: Path | None) -> None:
    from .timing import measure_operations

    measure_operations(modules, device, calls, output)
