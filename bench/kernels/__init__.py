"""`python -m bench kernels`: each fused operation against plain PyTorch; one module per operation.

First every operation's correctness on the device; what is wrong there is not timed. Then, on a GPU, each
case's implementations in turn, with inputs rotating so that none finds its own in the cache.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from fasttrain.errors import ConfigError, RunError

from ..arguments import Parser, check_least
from ..measure import choose_device
from .case import Check

OPERATIONS = ("normalized_loss", "batchnorm_act", "batchnorm_act_pool", "batchnorm_act_conv1x1")
"""The folders of `kernels/`; each has a module of this package, with `checks(device)` and `cases(device)`."""


class WrongResultError(RunError):
    """An operation's results are not accurate enough."""


def main(argv: Sequence[str]) -> None:
    """Run the benchmark.

    Raises:
        ConfigError: an option's value that is not allowed.
        WrongResultError: an operation that is wrong on this device; the others are measured before.
    """
    options = _parser().parse_args(list(argv))
    device = choose_device(options.device)
    names = options.ops.split(",") if options.ops else list(OPERATIONS)
    for name in names:
        if name not in OPERATIONS:
            raise ConfigError(f"--ops holds {name!r}; allowed: {', '.join(OPERATIONS)}")
    check_least(options, calls=3)
    modules = {name: importlib.import_module(f"bench.kernels.{name}") for name in names}
    wrong = [name for name, module in modules.items() if not holds(name, module.checks(device), device)]
    if device.type == "cpu":
        print(
            "A CPU, by Triton's interpreter, whose speed says nothing: correctness is all that is measured, "
            "and no file is written."
        )
    else:
        _measure({n: m for n, m in modules.items() if n not in wrong}, device, options.calls, options.output)
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


def holds(name: str, checks: Sequence[Check], device: torch.device) -> bool:
    """Run checks, and say how they went; whether all hold."""
    failures = 0
    for check in checks:
        try:
            for comparison in check.compare():
                comparison.check()
        except Exception as error:  # whatever it is, the others are still checked
            failures += 1
            print(f"{name}: WRONG: {check.label}: {type(error).__name__}: {error}")
    print(f"{name}: {len(checks) - failures} of {len(checks)} checks hold on {device}", flush=True)
    return not failures


def _measure(modules: dict[str, ModuleType], device: torch.device, calls: int, output: Path | None) -> None:
    from .timing import measure_operations

    measure_operations(modules, device, calls, output)
