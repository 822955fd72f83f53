"""`python -m bench checks`: whether every fused operation and the training step are right on this device.

Each result is held against float64: its error may be twice plain PyTorch's in the same dtype, plus 4 units in
the last place (`bench.accuracy`). On a CPU the kernels run in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from fasttrain.errors import RunError

from .arguments import Parser, chosen
from .case import Check
from .measure import choose_device
from .rows import PLACE, Rows, default_output, environment

COLUMNS = ("bench", "op", "check", "results", "worst", "holds", "fault", "triton", *PLACE)
"""`worst`: the largest error of the check's `results`, over what is allowed."""

OPERATIONS = ("normalized_loss", "batchnorm_act", "batchnorm_act_pool", "batchnorm_act_conv1x1")
"""Folders of `kernels/`; each has a module of `bench.kernels` with `checks(device)` and `cases(device)`."""

SUBJECTS = (*OPERATIONS, "step")


class WrongResultError(RunError):
    """Results that are not accurate enough."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check went.

    Attributes:
        label: what was checked.
        results: compared tensors.
        worst: the largest error over what is allowed; NaN if nothing could be compared.
        fault: what is wrong; empty if nothing.
    """

    label: str
    results: int
    worst: float
    fault: str


def main(argv: Sequence[str]) -> None:
    """Run the checks.

    Raises:
        ConfigError: an option's value that is not allowed.
        WrongResultError: something is wrong on this device.
    """
    options = _parser().parse_args(list(argv))
    device = choose_device(options.device)
    names = chosen("--ops", options.ops, SUBJECTS)
    wrong = run(names, device, options.output or default_output("checks", device))
    if wrong:
        raise WrongResultError(f"wrong on {device}: {', '.join(wrong)}")


def run(names: Sequence[str], device: torch.device, output: Path) -> list[str]:
    """Check some of `SUBJECTS` and write a row for each check; those that are wrong."""
    import triton

    common = {"bench": "checks", "triton": triton.__version__} | environment(device)
    rows = Rows(output, COLUMNS, common)
    wrong = []
    for name in names:
        outcomes = examine(name, checks_of(name, device), device)
        for outcome in outcomes:
            holds = int(not outcome.fault)
            values = {"results": outcome.results, "worst": outcome.worst, "fault": outcome.fault}
            rows.add(op=name, check=outcome.label, holds=holds, **values)
        rows.write()
        if any(outcome.fault for outcome in outcomes):
            wrong.append(name)
    return wrong


def checks_of(name: str, device: torch.device) -> Sequence[Check]:
    """The checks of an operation, or of the step."""
    module: ModuleType = importlib.import_module(
        "bench.step_check" if name == "step" else f"bench.kernels.{name}"
    )
    return module.checks(device)


def examine(name: str, checks: Sequence[Check], device: torch.device) -> list[Outcome]:
    """Run checks, and say how they went."""
    outcomes = [_examine(check) for check in checks]
    for outcome in outcomes:
        if outcome.fault:
            print(f"{name}: WRONG: {outcome.label}: {outcome.fault}")
    held = sum(not outcome.fault for outcome in outcomes)
    print(f"{name}: {held} of {len(outcomes)} checks hold on {device}", flush=True)
    return outcomes


def _examine(check: Check) -> Outcome:
    results, worst = 0, math.nan
    try:
        for comparison in check.compare():
            comparison.check()
            results += 1
            ratio = comparison.error / comparison.allowed if comparison.error else 0.0
            worst = ratio if math.isnan(worst) else max(worst, ratio)
    except Exception as error:  # whatever it is, the others are still checked
        return Outcome(check.label, results, worst, f"{type(error).__name__}: {error}")
    return Outcome(check.label, results, worst, "")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench checks", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is a GPU")
    add("--ops", default="", help=f"some of {','.join(SUBJECTS)} (default: all)")
    add("-o", "--output", type=Path, help="CSV file (default: bench/results/<device>/checks.csv)")
    return parser
