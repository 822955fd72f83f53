"""The papers' experiments on trained networks, one file each: `fasttrain analyze NAME RUN [RUN ...]`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from . import (
    amplitude,
    bound,
    delete_one,
    delete_several,
    epochs,
    kl,
    layers,
    number,
    permute,
    receptive_field,
    subnets,
)
from .options import Options
from .output import Result, check_folder, new_figure, show, write
from .runs import folder_of


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


EXPERIMENTS = {
    "subnets": Experiment("Subnets", subnets.SubnetsOptions, subnets.measure),
    "delete-one": Experiment("One block deleted", delete_one.DeleteOneOptions, delete_one.measure),
    "delete-several": Experiment(
        "Several blocks deleted", delete_several.DeleteSeveralOptions, delete_several.measure
    ),
    "permute": Experiment("Blocks permuted within stages", permute.PermuteOptions, permute.measure),
    "kl": Experiment("KL of the subnets over checkpoints", kl.KlOptions, kl.measure),
    "amplitude": Experiment("Logit amplitude over models", amplitude.AmplitudeOptions, amplitude.measure),
    "receptive-field": Experiment(
        "Effective receptive field", receptive_field.ReceptiveFieldOptions, receptive_field.measure
    ),
    "layers": Experiment("Blocks kept in each stage", layers.LayersOptions, layers.measure),
    "epochs": Experiment("Accuracy over epochs", epochs.EpochsOptions, epochs.measure),
    "number": Experiment("Accuracy over the number of subnets", number.NumberOptions, number.measure),
    "bound": Experiment("Gap to the main network and its bound", bound.BoundOptions, bound.measure),
}
"""Name on the command line to experiment."""


def experiment(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"analyze {name}: unknown; allowed: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def analyze(name: str, runs: Sequence[Path], options: Options) -> list[Path]:
    """Do an experiment, print its table, and write NAME.json and NAME.png; their paths.

    Args:
        name: of the experiment.
        runs: run folders or, for experiments that run a network, checkpoint files.
        options: of the experiment's own class.

    Raises:
        RunError: see `fasttrain.errors`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}; allowed: analyze in one process")
    new_figure()  # without matplotlib nothing is computed
    chosen = experiment(name)
    folder = Path(options.output) if options.output else folder_of(runs[0]) / "analysis"
    if options.output or os.path.isdir(folder.parent):
        check_folder(folder, name)
    result = chosen.measure(runs, options)
    values = {"experiment": name, "runs": list(map(str, runs)), "options": asdict(options)}
    paths = write(folder, name, values | asdict(result), result)  # type: ignore[call-overload]
    show(chosen.title, result.rows())
    return paths
