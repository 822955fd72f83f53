"""`fasttrain compare`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import tyro

from ..effects import refuse_ignored
from ..errors import ConfigError
from ..startup import importing
from .configure import overridden


@dataclass(frozen=True, kw_only=True)
class _Compare:
    """Short runs of several recipes under the same seeds, one after the other, and a table of what they cost
    and come to. The same command goes on where it was; --section.field value overrides all recipes.
    """

    budget: Annotated[str, tyro.conf.arg(metavar="EPOCHS|MINUTESm")]
    """Epochs of each run, such as 6; or minutes of all of them, such as 28m, from which epochs follow."""
    seeds: int = 3
    """Runs of each recipe, with the seeds 0, 1, ..."""
    subnets: int = -1
    """How many ordered subnets are judged; -1: all."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = Path("runs/compare")
    """Holds the runs, comparison.json and comparison.csv."""


OWN = {
    "--run.epochs": "--budget",
    "--run.seed": "--seeds",
    "--run.name": "-o DIR",
    "--run.folder": "-o DIR",
    "--evaluation.subnets": "--subnets",
    "--evaluation.every": "none, a run is evaluated at its end",
}
"""Fields that a comparison sets itself, and the option for it."""


def compare(rest: list[str]) -> None:
    recipes = list(takewhile(lambda word: not word.startswith("-"), rest))
    options, overrides = tyro.cli(
        _Compare,
        prog="fasttrain compare RECIPE RECIPE ...",
        args=rest[len(recipes) :],
        return_unknown_args=True,
    )
    if len(recipes) < 2 or len(set(recipes)) < len(recipes):
        raise ConfigError(
            f"compare {' '.join(recipes)}; allowed: two or more different recipes, before the options"
        )
    for name, value, allowed in (("--seeds", options.seeds, 1), ("--subnets", options.subnets, -1)):
        if not allowed <= value <= 100_000 or value == 0:
            raise ConfigError(f"{name} is {value}; allowed: {allowed} or more, not 0")
    for word in overrides:
        field = word.partition("=")[0].replace("_", "-")
        if field in OWN:
            raise ConfigError(f"{field} is set by the comparison; allowed: {OWN[field]}")
    pairs = {Path(name).stem: overridden("compare", [name, *overrides]) for name in recipes}
    if len(pairs) < len(recipes):
        raise ConfigError(f"compare {' '.join(recipes)}; allowed: recipes and files of different names")
    refuse_ignored(pairs.values())
    with importing():
        from ..comparison import compare, parse_budget

    budget = parse_budget(options.budget)
    configs = {name: config for name, (_, config) in pairs.items()}
    compare(configs, budget, seeds=options.seeds, subnets=options.subnets, folder=options.output)
