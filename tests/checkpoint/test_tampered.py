"""Contents that were changed and hashed anew: each value of a real checkpoint, damaged in every way.

A resume, an evaluation and an export work or end in one message; none ends in a traceback, then or later.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain import build, checkpoint, flops, loading, trained
from fasttrain.checkpoint import schema
from fasttrain.checkpoint.state import State, random_state, set_random_state
from fasttrain.cli import main
from fasttrain.config import Config, to_dict
from fasttrain.distributed import Process
from fasttrain.errors import CheckpointError, ConfigError
from fasttrain.hardware import choose_precision
from fasttrain.models import StagedNetwork
from fasttrain.pipelines.batch import Batch
from fasttrain.telemetry.interval import Interval
from fasttrain.trainer import train
from tests.networks import tiny_resnet
from tests.test_trainer import configure, write_images

CPU = torch.device("cpu")
GONE = object()
"""Stands for a value that is missing."""
DAMAGES: dict[str, Any] = {
    "gone": GONE,
    "None": None,
    "text": "x",
    "-1": -1,
    "NaN": math.nan,
    "infinite": math.inf,
    "huge": 10**400,
    "large": 10**12,
    "True": True,
    "empty": torch.zeros(0),
    "number": torch.tensor(math.nan),
    "list": [],
    "dictionary": {},
}
"""What a value is replaced by. A tensor is damaged in its own shape, too."""


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    """A network of few tensors, and this process's generators as they were."""
    first = cache(lambda classes: tiny_resnet((1, 1), classes=classes).float())

    def named(network: StagedNetwork, name: str) -> StagedNetwork:
        network.name = name
        return network

    def create(name: str, num_classes: int) -> StagedNetwork:
        return named(first.__wrapped__(num_classes), name)

    def copied(name: str, num_classes: int) -> StagedNetwork:
        """Much faster."""
        with torch.device("cpu"):
            return named(copy.deepcopy(first(num_classes)), name)

    before = random_state(CPU)
    with pytest.MonkeyPatch.context() as patch:
        for module, function in ((build, create), (flops, create), (trained, copied)):
            patch.setattr(module, "create_model", function)
        flops.meta_network.cache_clear()
        yield
    flops.meta_network.cache_clear()
    set_random_state(before, CPU)


@dataclass
class Small:
    """A run's parts, without a run: what it restores, and a batch to take a step with."""

    config: Config
    state: State
    batch: Batch

    def captured(self) -> dict[str, Any]:
        """As a file gives it back."""
        return copy.deepcopy(self.state.capture())

    def take_step(self) -> None:
        state, position = self.state, self.state.progress.position
        assert state.interval is not None
        result = state.step(
            self.batch.images,
            self.batch.small,
            self.batch.targets,
            epoch=position.epoch,
            step=position.step,
            global_step=position.global_step,
        )
        state.interval.add(result, len(self.batch.targets))

    def go_on(self) -> None:
        """What a run does after it was restored: a step, its metrics, a checkpoint."""
        self.take_step()
        self.state.step.check.settle()
        assert self.state.interval is not None
        self.state.interval.collect()
        self.state.interval.restart()
        self.state.capture()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ and val/."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 6, 0)
    write_images(folder / "val", 2, 1)
    return folder


def small(images: Path, optimizer: str) -> Iterator[Small]:
    """A run in the middle of its first epoch, between two reports."""
    config = configure(images, images, optim={"name": optimizer}, run={"precision": "fp32"})
    process = Process(0, 1, CPU)
    folders = loading.find_images(config, process)
    network = build.build_network(config, 3, CPU)
    precision = choose_precision("fp32", CPU)
    with closing(loading.build_train_loader(config, folders.train, process, precision.image_dtype)) as loader:
        step = build.build_step(config, network, process, precision, loader.steps_per_epoch)
        state = State(config, process, folders.train.classes, network, step, loader)
        state.report_to(Interval(CPU))
        run = Small(config, state, next(loader.epoch(0)))
        run.take_step()
        state.progress.position.step = state.progress.position.global_step = 1
        yield run


@pytest.fixture(scope="module", params=["sgd", "adamw", "lamb"])
def run(images: Path, request: pytest.FixtureRequest) -> Iterator[Small]:
    yield from small(images, request.param)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys to each value, nested; of many tensors or numbers one of each kind."""
    if path:
        yield path
    keys: list[Any] = []
    if isinstance(value, Mapping):
        keys = list(value)
    elif isinstance(value, list | tuple):
        keys = list(range(len(value)))
    if len(keys) > 8 and not (path and path[0] in ("config", "optimizer") and isinstance(keys[0], str)):
        keys = [keys[0], keys[3], keys[5], keys[-1]] if path else keys  # weight, mean, counter, bias
    for key in keys:
        yield from places(value[key], (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def damaged(state: dict[str, Any], path: tuple[Any, ...], damage: Any) -> dict[str, Any]:
    """The state with another value at a place; what is beside it is shared."""
    key, *rest = path
    changed: Any = dict(state) if isinstance(state, Mapping) else list(state)
    if rest:
        changed[key] = damaged(changed[key], tuple(rest), damage)
    elif damage is GONE:
        del changed[key]
    else:
        changed[key] = damage
    return changed


def damages(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    if place[0] == "config" or "param_groups" in place:  # many, and of few kinds
        return {name: DAMAGES[name] for name in ("gone", "text", "-1")}
    if not isinstance(value, torch.Tensor):
        return DAMAGES
    own = {"smaller": value.reshape(-1)[:-1], "double": torch.zeros(2, *value.shape), "complex": value * 1j}
    if value.is_floating_point():
        own["of NaN"] = torch.full_like(value, math.nan)
    return DAMAGES | own


def restore(run: Small, state: dict[str, Any]) -> str:
    """Empty, or the one message that a restore ends in."""
    moments = {"optimizer": copy.deepcopy(state["optimizer"])} if "optimizer" in state else {}
    try:
        run.state.restore(state | moments, Path("step-00000001.pt"))  # which torch would go on to change
    except (CheckpointError, ConfigError) as error:
        return str(error)
    return ""


def test_no_damaged_value_ends_a_resume_in_a_traceback(run: Small) -> None:
    """And what a resume takes, it can go on with. (The fields of the configuration: in the test below.)"""
    good = run.captured()
    faults, messages, taken = [], [], []
    parts = good if run.config.optim.name == "sgd" else {"optimizer": good["optimizer"]}
    if "config" in parts:
        parts = parts | {"config": {section: {} for section in good["config"]}}
    for place in places(parts):
        for name, damage in damages(place, at(good, place)).items():
            try:
                message = restore(run, damaged(good, place, damage))
                if message:
                    messages.append(message)
                elif place[0] != "config":
                    taken.append((*place, name))
                    run.go_on()
                    assert restore(run, good) == ""
            except Exception as error:
                faults.append((place, name, f"{type(error).__name__}: {error}"))
                assert restore(run, good) == ""
    assert faults == []
    assert not [message for message in messages if "\n" in message]
    assert [each for each in taken if not harmless(each)] == []
    assert len(messages) > 200


def harmless(place: tuple[Any, ...]) -> bool:
    """Whether this damage changes nothing of what is trained, or is what a run could have written."""
    *names, damage = place
    match names:
        case ["optimizer", "param_groups", *_]:
            return True  # options are the configuration's; the schedule sets the learning rate
        case ["optimizer", "state", *_]:
            return damage in ("gone", "dictionary")  # a parameter that had no gradient yet
        case ["loader", "fingerprint", name]:
            return name in ("rank", "world", "source")  # free to differ
        case ["trained" | "skipped" | "best" | "main", *_] | ["ranks", _, "random" | "interval", *_]:
            return damage in ("large", "-1", "None") or names[-1] == "cuda"  # in range, or of no use here
        case ["network" | "ranks" | "ema", *_, name]:
            return str(name).endswith(("num_batches_tracked", "n_averaged"))
    return tuple(place) in POSSIBLE


POSSIBLE = {
    ("auxiliary", "None"),
    ("auxiliary", "dictionary"),
    ("auxiliary", "gone"),
    ("loader", "epoch", "large"),  # the run's own position counts
    ("scaler", "dictionary"),  # as it is without fp16
}


def test_no_damaged_value_ends_an_opening_in_a_traceback(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As evaluate, export and the analyses open a checkpoint, and build its network."""
    (run,) = small(images, "sgd")
    good = run.captured()
    good["format"] = checkpoint.FORMAT
    path = tmp_path / "step-00000001.pt"
    path.touch()
    read, faults, messages = good, [], []
    monkeypatch.setattr(checkpoint, "parse", lambda _: read)
    monkeypatch.setattr(checkpoint, "load", lambda _: read)
    for place in places(good):
        if place[0] in ("ranks", "loader", "optimizer", "scaler", "format"):
            continue
        for name, damage in damages(place, at(good, place)).items():
            read = damaged(good, place, damage)
            try:
                opened = trained.open_trained(path)
                if place[:2] == ("config", "model") or place[0] != "config":
                    opened.network()
            except CheckpointError as error:
                messages.append(str(error))
            except Exception as error:
                faults.append((place, name, f"{type(error).__name__}: {error}"))
    assert faults == []
    assert not [message for message in messages if "\n" in message]
    assert len(messages) > 200


def test_a_state_that_a_run_made_is_as_the_schema_says(run: Small) -> None:
    schema.check(run.captured(), Path("x"))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("finished")
    config = configure(images, folder, evaluation={"subnets": 0}, run={"precision": "fp32", "max_steps": 2})
    train(config)
    return config


@pytest.mark.parametrize(
    ("place", "damage", "told", "commands"),
    [
        (("position", "global_step"), "x", "position.global_step is 'x'; allowed: a whole number", "all"),
        (
            ("network", "bn1.weight"),
            torch.zeros(3),
            "bn1.weight has shape (3,), the network's is (64,)",
            "resume",
        ),
        (("ema", "module.fc.bias"), torch.full((3,), math.nan), "NaN or infinite values in", "all"),
        (("classes",), [1, 2, 3], "classes.0 is 1; allowed: a class's name", "all"),
        (
            ("ranks", 0, "random", "numpy", 1),
            10**9,
            "ranks.0.random.numpy.1 is 1000000000; allowed",
            "resume",
        ),
        (("ranks", 0, "interval", "watch"), [], "watch is a list; allowed: a list of 2", "resume"),
        (
            ("optimizer", "state", 0, "momentum_buffer"),
            torch.zeros(2),
            "momentum_buffer has shape (2,)",
            "resume",
        ),
    ],
)
def test_a_rewritten_file_with_a_hash_that_fits_is_refused_by_every_command(
    finished: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    place: tuple[Any, ...],
    damage: Any,
    told: str,
    commands: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(Path(finished.run.folder) / "run", run)
    for path in (run / "checkpoints").glob("step-*.pt"):
        written = checkpoint.save(path, damaged(checkpoint.load(path), place, damage))
        checkpoint.save_manifest(path, written, {"step": 1})
    config = replace(finished, run=replace(finished.run, folder=str(tmp_path), max_steps=4))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    output = tmp_path / "x.safetensors"
    calls: dict[str, list[Any]] = {"train": [tmp_path / "config.json"]}
    if commands != "train":
        calls["check"] = calls["train"]
    if commands == "all":
        calls |= {
            "evaluate": [run, "--checkpoint", "last", "--device", "cpu", "--subnets", "0"],
            "export": [run, "--checkpoint", "last", "--format", "safetensors", "-o", output],
        }
    for command, words in calls.items():
        with pytest.raises(SystemExit) as end:
            main([command, *map(str, words)])
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 4
        assert told in line
    assert not output.exists()
