"""A trained network as it lies on the disk: a run's, a checkpoint's, or a file of weights with a recipe."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__, build, checkpoint
from .checkpoint import schema
from .checkpoint.archive import Archive
from .compat.sets import classes_of, split_key, take
from .config import Config, Run, from_dict, to_dict
from .errors import CheckpointError, ConfigError
from .models import StagedNetwork, create_model
from .pipelines.classes import NATURAL, arranged, assumption, difference, natural
from .pipelines.folder import ImageFolder, reordered
from .recipes import recipe
from .subnets import Depths

MOST_OUTPUTS = 1_000_000
"""Of a classifier, as `data.num_classes` allows."""


@dataclass(frozen=True, slots=True)
class Trained:
    """Weights and what is known about them.

    Attributes:
        path: of the file.
        config: of the run, or of the recipe that was named.
        weights: in our names, on the CPU, as evaluation judges them.
        outputs: of the classifier.
        depths: blocks per stage: all of the model's, or of a subnet that stands alone.
        classes: names of the outputs; none where neither the file nor the user says.
        natural: whether the outputs are those of images' class folders in natural order, as the user says.
        step, epoch: done in training, if known.
        top1: percent of the validation images, if these weights were evaluated.
        statistics: of batch norm: `main`, as training left them, or `reestimated`.
        note: which of several sets of weights in the file these are, as a line; else empty.
    """

    path: Path
    config: Config
    weights: dict[str, Tensor]
    outputs: int
    depths: Depths
    classes: tuple[str, ...] = ()
    step: int | None = None
    epoch: int | None = None
    top1: float | None = None
    statistics: str = "main"
    note: str = ""
    natural: bool = False

    def network(self) -> StagedNetwork:
        """The network in timm's layers on the CPU, in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit.
        """
        with checkpoint.restoring(self.path):  # its classifier's size may be none that can be
            network = create_model(self.config.model.name, self.outputs)
        return self._load(network).eval()

    def build(self, config: Config, device: torch.device) -> StagedNetwork:
        """The network on a device, fused as a configuration of the same model asks.

        Raises:
            ConfigError: see `build.build_network`.
            CheckpointError: the weights do not fit.
        """
        config = replace(config, data=replace(config.data, num_classes=self.outputs))
        return self._load(build.build_network(config, self.outputs, device))

    def _load(self, network: StagedNetwork) -> StagedNetwork:
        with checkpoint.restoring(self.path):
            network.keep(self.depths)
            checkpoint.load_state(network, self.weights, self.path)
        return network

    def fitted(self, images: ImageFolder) -> ImageFolder:
        """Images with this network's outputs as labels: their classes in the order in which it names them.

        Where it does not, they have to be as many, and their order is what was said of it, or their own.

        Raises:
            CheckpointError: they are of other classes.
        """
        if not self.classes and len(images.classes) != self.outputs:
            raise CheckpointError(
                f"{self.path} has {self.outputs} outputs, {images.root} holds {len(images.classes)} classes; "
                "allowed: as many, in the order of the outputs"
            )
        names = self.classes or (natural(images.classes) if self.natural else images.classes)
        differing = difference(images.classes, names)
        if differing:
            raise CheckpointError(
                f"{self.path} was trained on other classes than {images.root} holds: {differing}; allowed: "
                "the same; for other names: --classes FILE, which lists the folders in the outputs' order"
            )
        return reordered(images, names)

    def assumption(self, images: ImageFolder) -> str:
        """A line where the order of images' classes is a guess, which other programs' weights may not fit."""
        known = self.classes or self.natural
        return "" if known else assumption(images.classes, images.root, "--classes")


def open_trained(path: Path, which: str = "best", recipe_name: str = "", order: str = "") -> Trained:
    """Read a trained network.

    Args:
        path: of a run's folder, a training checkpoint, or a file of weights in any form that
            `compat.weights` knows; `PATH#KEY` for one of several sets of weights in it, see `compat.sets`.
        which: `best` or `last`, of a run's folder.
        recipe_name: a recipe or config.json, for a file of weights that names no configuration.
        order: of the outputs, as `classes.arranged` takes it, whatever the file says; empty: what it says.

    Raises:
        CheckpointError: missing, damaged, or of another network.
        ConfigError: a recipe for what has its own configuration, none for what has not, or an unknown one; an
            order of other classes.
    """
    return _ordered(_open(path, which, recipe_name), order)


def _open(path: Path, which: str, recipe_name: str) -> Trained:
    path, key = split_key(path)
    if not os.path.isfile(path):  # unlike Path.is_file, never raises
        path = Archive(path / "checkpoints").chosen(which)
    state = checkpoint.parse(path)
    if not checkpoint.is_training(state):
        return _from_weights(path, key, state, recipe_name)
    if recipe_name:
        raise ConfigError(f"--recipe is {recipe_name}; allowed: none for {path}, which has a configuration")
    return _from_checkpoint(path, key)


_READ = ("config", "classes", "position", "evaluated", "main", "network", "ema")
"""What of a training checkpoint is read here."""


def _ordered(trained: Trained, order: str) -> Trained:
    """With the order of the outputs that the user says they have."""
    if not order:
        return trained
    names = arranged(trained.classes, order, "--classes")
    if trained.classes and names != trained.classes:
        told = (
            f"--classes {order} gives another order than {trained.path} names: {', '.join(trained.classes)}"
        )
        trained = replace(trained, note="; ".join(filter(None, (trained.note, told))))
    count = len(trained.classes) or trained.outputs
    if len(names) != count and order != NATURAL:
        raise ConfigError(
            f"--classes {order} holds {len(names)} names; allowed: the {count} of {trained.path}'s outputs"
        )
    return replace(trained, classes=names, natural=order == NATURAL)


def _from_checkpoint(path: Path, key: str) -> Trained:
    state = checkpoint.load(path)  # compared with its manifest
    schema.check(state, path, _READ)
    with checkpoint.restoring(path):
        config, position, main = from_dict(state["config"]), state["position"], state.get("main")
        evaluated = state.get("evaluated") == position["global_step"] and not key
        skeleton = _skeleton(config)
        return Trained(
            path=_with_key(path, key),
            config=config,
            weights=take(skeleton, state, path, key).weights if key else checkpoint.judged_weights(state),
            outputs=config.data.num_classes or len(state["classes"]),
            depths=skeleton.depths,
            classes=tuple(state["classes"]),
            step=int(position["global_step"]),
            epoch=int(position["epoch"]),
            top1=float(main["top1"]) if main and evaluated else None,
        )


def _with_key(path: Path, key: str) -> Path:
    return Path(f"{path}#{key}") if key else path


def _from_weights(path: Path, key: str, state: Any, recipe_name: str) -> Trained:
    told = _read_metadata(path)
    if bool(told) == bool(recipe_name):
        allowed = "none, since it names its own" if told else "the recipe or config.json that it fits"
        raise ConfigError(f"--recipe is {recipe_name!r} for the weights in {path}; allowed: {allowed}")
    named = {"config": recipe(recipe_name)} if recipe_name else {}
    with checkpoint.restoring(path):
        facts: dict[str, Any] = named or _facts(told)
        skeleton = _skeleton(facts["config"])
        skeleton.keep(facts.setdefault("depths", skeleton.depths))
        taken = take(skeleton, state, path, key)
        head = taken.weights[list(skeleton.state_dict())[-1]]
        outputs = len(head) if head.ndim else 1
        if not 1 <= outputs <= MOST_OUTPUTS:  # a few bytes can stand for any number
            raise ValueError(f"its classifier has {outputs} outputs; allowed: 1 to {MOST_OUTPUTS}")
        names = classes_of(state)
        usable = len(names) == outputs == len(set(names))
        facts.setdefault("classes", names if usable else ())
        unused = f"the {len(names)} names of classes in {path} are not those of {outputs} different outputs"
        notes = [taken.note, unused if names and not usable else ""]
        return Trained(
            path=_with_key(path, key),
            weights=taken.weights,
            outputs=outputs,
            note="; ".join(filter(None, notes)),
            **facts,
        )


def _skeleton(config: Config) -> StagedNetwork:
    """A run's network with one output, without memory for its weights."""
    with torch.device("meta"):
        return create_model(config.model.name, 1)


def named_outputs(path: Path) -> tuple[str, ...]:
    """The classes that a file of weights (`PATH#KEY` too) names its outputs by; none where it does not.

    Raises:
        CheckpointError: missing or damaged.
    """
    path, _ = split_key(path)
    state = checkpoint.parse(path)
    with checkpoint.restoring(path):
        told = _read_metadata(path)
        return _facts(told)["classes"] if told else classes_of(state)


def metadata(trained: Trained) -> dict[str, str]:
    """What an exported file says of its network, each value as text; `open_trained` reads it."""
    config = trained.config
    known = {"step": trained.step, "epoch": trained.epoch, "top1": trained.top1}
    return {
        "fasttrain": __version__,
        "recipe": config.recipe,
        "model": config.model.name,
        "depths": ",".join(map(str, trained.depths)),
        "statistics": trained.statistics,
        "classes": json.dumps(trained.classes),
        "config": json.dumps(to_dict(_portable(trained))),
        **{name: str(value) for name, value in known.items() if value is not None},
    }


def _portable(trained: Trained) -> Config:
    """The configuration without this machine's folders; a subnet's sampling space is its own."""
    config, method = trained.config, trained.config.method
    if trained.depths != _skeleton(config).depths:
        method = replace(method, space="default")
    return replace(
        config,
        data=replace(config.data, train="", val="", classes=""),
        model=replace(config.model, weights=""),
        method=method,
        run=replace(config.run, folder=Run().folder, name="", resume="auto", wandb=""),
    )


def _read_metadata(path: Path) -> dict[str, str]:
    """What `metadata` wrote into a safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        told = file.metadata() or {}
    return told if "fasttrain" in told else {}


def _facts(told: dict[str, str]) -> dict[str, Any]:
    """Fields of `Trained` in a file's metadata.

    Raises:
        ValueError, KeyError: one is missing, or none that `metadata` writes.
    """
    numbers = {"step": int, "epoch": int, "top1": float}
    classes = json.loads(told["classes"])
    names = isinstance(classes, list) and all(isinstance(each, str) for each in classes)
    if not names or len(set(classes)) < len(classes):
        raise ValueError(f"its classes are {told['classes'][:100]}; allowed: a list of different names")
    if told["statistics"] not in ("main", "reestimated"):
        raise ValueError(f"its statistics are {told['statistics'][:100]!r}; allowed: main, reestimated")
    for name in numbers:
        if not 0 <= float(told.get(name, 0)) <= (100 if name == "top1" else math.inf):
            allowed = "percent" if name == "top1" else "0 or more"
            raise ValueError(f"its {name} is {told[name][:100]}; allowed: {allowed}")
    return {
        "config": from_dict(json.loads(told["config"])),
        "depths": tuple(int(depth) for depth in told["depths"].split(",")),
        "classes": tuple(classes),
        "statistics": told["statistics"],
        **{name: kind(told[name]) for name, kind in numbers.items() if name in told},
    }
