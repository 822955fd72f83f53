"""`fasttrain compare`: short runs of several recipes side by side, the columns of the ST paper's comparison.

costs of each recipe's step <- measured in turns, once
epochs <- the budget's, or as many as fit into its minutes
for each seed, for each recipe:
    a run is trained and judged, unless it was
table <- what is there so far, after each run
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import loading
from ..checkpoint.state import flat
from ..config import Config, to_dict
from ..distributed import Process
from ..errors import ConfigError
from ..flops import meta_network
from ..hardware import choose_device
from ..launch.place import world
from ..passes import check_passes
from ..subnets import PrefixTree
from ..telemetry.files import read_json, write_json
from .cost import Cost, measure_costs
from .result import rows_of, show, write
from .runs import Verdict, judged_subnets, run_of, verdict_on

START = 8.0
"""Seconds that a run is taken to need besides its steps and its evaluation."""
LOADING = 1.3
"""Seconds of a step in training, its images decoded beside it, over those of the step alone, on a CPU."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Of a comparison: epochs of each run, or minutes of all of them; the other is 0."""

    epochs: int = 0
    minutes: float = 0.0


def parse_budget(text: str) -> Budget:
    """`6` or `6 epochs`, `28m`, `28min` or `28 minutes`.

    Raises:
        ConfigError: something else.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) ?(|e|epochs?|m|min|minutes?)", text)
    number, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if number > 0 and unit.startswith("m"):
        return Budget(minutes=number)
    if number < 1 or not number.is_integer():
        raise ConfigError(f"--budget is {text!r}; allowed: epochs, such as 6, or minutes in all, such as 28m")
    return Budget(epochs=int(number))


def compare(
    configs: Mapping[str, Config], budget: Budget, *, seeds: int = 3, subnets: int = -1, folder: Path
) -> None:
    """Train each recipe with each seed, and print and write the table of what came out.

    Everything lies in `folder`; what is there is not done again.

    Args:
        configs: the recipes by their names. The first of common training is what the others' costs are
            compared with, or else the first.
        budget: of the runs.
        seeds: 0 to this.
        subnets: how many ordered subnets are judged; -1: all.
        folder: for runs and results.

    Raises:
        ConfigError: recipes of several networks or without validation images, a budget too small for an
            epoch, or a folder that holds other runs.
        RunError: see `trainer.train`.
    """
    _check(configs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder -o {folder}: {error.strerror}") from None
    console = Console(soft_wrap=True, highlight=False)
    common = [label for label, config in configs.items() if config.method.name == "common"]
    baseline = next(iter([*common, *configs]))
    costs, epochs = _plan(configs, budget, seeds, subnets, folder, baseline)
    console.print(f"{len(configs) * seeds} runs of {epochs} epochs each", markup=False)
    verdicts: dict[str, list[Verdict]] = {label: [] for label in configs}
    for seed in range(seeds):
        for label, config in configs.items():
            console.print(f"{label}, seed {seed}", markup=False)
            verdicts[label].append(verdict_on(run_of(config, label, seed, epochs, folder), subnets))
            about = {"epochs": epochs, "baseline": baseline, "costs": _plain(costs)}
            write(folder, rows_of(costs, verdicts, baseline), about)
    model = next(iter(configs.values())).model.name
    title = f"{model}, {epochs} epochs: Top-1 on the validation images, %"
    show(rows_of(costs, verdicts, baseline), title, baseline)
    console.print(f"table: {folder / 'comparison.json'}, {folder / 'comparison.csv'}", markup=False)


SAME = (
    *("model.name", "run.batch", "data.train", "data.val", "data.builtin", "data.num_classes"),
    *("data.crop", "data.val_resize", "data.val_crop"),
)
"""Fields without which neither a step's cost nor an accuracy can be compared."""


def _check(configs: Mapping[str, Config]) -> None:
    fields = {label: flat(to_dict(config)) for label, config in configs.items()}
    for name in SAME:
        values = {label: own[name] for label, own in fields.items()}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{value!r} in {label}" for label, value in values.items())
            raise ConfigError(
                f"{name} is {told}; allowed: the same in all recipes"
                + ("" if name == "model.name" else f" (--{name.replace('_', '-')} VALUE sets it in all)")
            )
    for label, config in configs.items():
        if not config.data.val:
            raise ConfigError(f"{label}: data.val is empty; allowed: validation images (--data.val DIR)")
    if world() > 1:
        raise ConfigError(f"WORLD_SIZE is {world()}; allowed: compare in one process")


def _plan(
    configs: Mapping[str, Config], budget: Budget, seeds: int, subnets: int, folder: Path, baseline: str
) -> tuple[dict[str, Cost], int]:
    """Costs of the recipes and epochs of each run, as an earlier call found them or anew.

    Minutes become epochs once, for the recipes and seeds of the first call.
    """
    path, begin = folder / "plan.json", time.perf_counter()
    known = read_json(path)
    process = Process(0, 1, choose_device(configs[baseline].run.device))
    folders = {label: loading.find_images(config, process) for label, config in configs.items()}
    for label, config in configs.items():
        check_passes(config, 1, len(folders[label].train.files))
    if known.get("recipes") == _hashes(configs):
        costs = {label: Cost(**cost) for label, cost in known["costs"].items()}
    else:
        costs = measure_costs(configs, len(folders[baseline].train.classes))
    if known.get("budget") == asdict(budget):
        epochs = int(known["epochs"])
    elif budget.epochs:
        epochs = budget.epochs
    else:
        epoch = LOADING * sum(
            loading.steps_per_epoch(config, folders[label].train, 1) * costs[label].seconds
            for label, config in configs.items()
        )
        validation = folders[baseline].val
        assert validation is not None  # data.val is given
        judged = _judging_seconds(configs[baseline], costs[baseline], len(validation.files), subnets)
        spent = time.perf_counter() - begin
        epochs = epochs_within(budget, seeds, epoch, len(configs) * (START + judged), spent)
    plan = {"recipes": _hashes(configs), "budget": asdict(budget), "epochs": epochs, "costs": _plain(costs)}
    write_json(path, plan)
    return costs, epochs


def epochs_within(budget: Budget, seeds: int, epoch: float, fixed: float, spent: float) -> int:
    """How many epochs fit into a budget of minutes.

    Args:
        budget: of minutes.
        seeds: how often each recipe runs.
        epoch: seconds of one epoch of all recipes.
        fixed: seconds that one run of each takes besides.
        spent: seconds that are gone already.

    Raises:
        ConfigError: not one does.
    """
    epochs = math.floor(((60 * budget.minutes - spent) / seeds - fixed) / epoch)
    if epochs < 1:
        least = math.ceil((spent + seeds * (fixed + epoch)) / 60)
        raise ConfigError(
            f"--budget is {budget.minutes:g}m; allowed here: about {least}m or more, for an epoch of each run"
        )
    return epochs


def _judging_seconds(config: Config, cost: Cost, images: int, subnets: int) -> float:
    """About what judging a run takes: forward passes, a third of a step's work, over a tree of subnets."""
    network = meta_network(config.model.name)
    tree = PrefixTree(judged_subnets(network, subnets) or [network.full])
    images += config.evaluation.calibration_images
    return images * cost.seconds / config.run.batch / 3 * len(tree) / sum(network.depths)


def _plain(costs: Mapping[str, Cost]) -> dict[str, Any]:
    return {label: asdict(cost) for label, cost in costs.items()}


def _hashes(configs: Mapping[str, Config]) -> dict[str, str]:
    """Of each recipe's settings, all of which may change its cost."""
    return {
        label: hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()
        for label, config in configs.items()
    }
