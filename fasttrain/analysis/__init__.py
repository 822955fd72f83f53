"""The papers' experiments on trained networks, one file each: `fasttrain analyze NAME RUN [RUN ...]`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from ..errors import ConfigError, instead
from ..launch.place import world
from .options import Options
from .output import Result, check_folder, new_figure, show, write

EXPERIMENTS = {
    "subnets": "Subnets",
    "delete-one": "One block deleted",
    "delete-several": "Several blocks deleted",
    "permute": "Blocks permuted within stages",
    "kl": "KL of the subnets over checkpoints",
    "amplitude": "Logit amplitude over models",
    "receptive-field": "Effective receptive field",
    "layers": "Blocks kept in each stage",
    "epochs": "Accuracy over epochs",
    "number": "Accuracy over the number of subnets",
    "bound": "Gap to the main network and its bound",
}
"""Name on the command line to the title of its table; the file of that name has its `measure`, and is
imported when it is asked for: with torch that takes seconds."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One of the papers' experiments.

    Attributes:
        title: of its table.
        options: the dataclass of what it takes, whose docstring says what it shows.
        measure: runs and options to its result.
    """

    title: str
    options: type[Options]
    measure: Callable[[Sequence[Path], Any], Result]


def experiment(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"analyze {name}: unknown; {instead(name, EXPERIMENTS)}")
    module = import_module(f".{name.replace('-', '_')}", __name__)
    return Experiment(EXPERIMENTS[name], get_type_hints(module.measure)["options"], module.measure)


def analyze(name: str, runs: Sequence[Path], options: Options) -> list[Path]:
    """Do an experiment, print its table, and write NAME.json and NAME.png; their paths.

    Args:
        name: of the experiment.
        runs: run folders or, for experiments that run a network, checkpoint files.
        options: of the experiment's own class.

    Raises:
        RunError: see `fasttrain.errors`.
    """
    if world() > 1:
        raise ConfigError(f"WORLD_SIZE is {world()}; allowed: analyze in one process")
    new_figure()  # without matplotlib nothing is computed
    chosen = experiment(name)
    from .runs import folder_of

    folder = Path(options.output) if options.output else folder_of(runs[0]) / "analysis"
    if options.output or os.path.isdir(folder.parent):
        check_folder(folder, name)
    result = chosen.measure(runs, options)
    values = {"experiment": name, "runs": list(map(str, runs)), "options": asdict(options)}
    paths = write(folder, name, values | asdict(result), result)  # type: ignore[call-overload]
    show(chosen.title, result.rows())
    return paths
