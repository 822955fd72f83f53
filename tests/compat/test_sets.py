"""Many programs' ways to keep weights and averages in one file: which set is taken, and what is said."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fasttrain.build import build_network
from fasttrain.checkpoint import load_weights
from fasttrain.cli import main
from fasttrain.compat.sets import classes_of, split_key, take
from fasttrain.config import to_dict
from fasttrain.errors import CheckpointError
from fasttrain.models import StagedNetwork, create_model
from fasttrain.trained import open_trained
from tests.test_trainer import configure, write_images

State = dict[str, Tensor]
RAW, AVERAGE = 20.0, 50.0
"""Top-1 of weights that always say class 2 or class 0, with 5, 3 and 2 images of the classes."""


def always(label: int) -> StagedNetwork:
    """A network that says one class whatever it sees."""
    torch.manual_seed(label)
    network = create_model("cifar_resnet20", 3)
    with torch.no_grad():
        network.fc.bias.copy_(100 * torch.eye(3)[label])  # type: ignore[union-attr, operator]
    return network


def below(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def averaged(state: State) -> State:
    """As torch's AveragedModel holds a network."""
    network = create_model("cifar_resnet20", 3)
    network.load_state_dict(state)
    return AveragedModel(network, use_buffers=True).state_dict()


def mmpretrain(state: State) -> State:
    return {f"{'head' if name.startswith('fc') else 'backbone'}.{name}": state[name] for name in state}


def composer(state: State) -> dict[str, Any]:
    moments = {"conv1.weight": {"exp_avg": torch.zeros(16, 3, 3, 3)}}
    return {"state": {"model": below("module.", state), "optimizers": {"SGD": {"state": moments}}}, "rng": []}


ALONE: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 1},
    "lightning": lambda state: {"state_dict": below("model.", state), "pytorch-lightning_version": "2"},
    "lightning with a loss": lambda state: {
        "state_dict": below("net.", state) | {"loss.weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(2)}}}],
    },
    "composer": composer,
    "mmpretrain": lambda state: {"meta": {"mmengine_version": "0.10"}, "state_dict": mmpretrain(state)},
    "AveragedModel": averaged,
    "compiled": lambda state: {"model": below("_orig_mod.module.", state)},
    "average alone": lambda state: {"model_ema": state, "epoch": 3},
    "state in model": lambda state: {"state_dict": {"model": state}},
    "other name": lambda state: {"epoch": 1, "resnet": state},
    "numpy metric": lambda state: {"state_dict": state, "metric": np.float64(71.2), "best": np.int64(3)},
    "options": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=np.float32(0.1))},
}
"""Forms of a file with one set of weights."""

BOTH: dict[str, tuple[Callable[[State, State], Any], str, str]] = {
    "timm": (lambda r, a: {"state_dict": r, "state_dict_ema": a}, "state_dict_ema", "state_dict"),
    "deit": (lambda r, a: {"model": r, "model_ema": a}, "model_ema", "model"),
    "torchvision": (lambda r, a: {"model": r, "model_ema": averaged(a)}, "model_ema", "model"),
    "nvidia": (lambda r, a: {"state_dict": r, "ema_state_dict": a}, "ema_state_dict", "state_dict"),
    "ema": (lambda r, a: {"model": r, "ema": a}, "ema", "model"),
    "ema_model": (lambda r, a: {"ema_model": below("module.", a), "net": r}, "ema_model", "net"),
    "module_ema": (lambda r, a: {"module": r, "module_ema": a}, "module_ema", "module"),
    "params_ema": (lambda r, a: {"params": r, "params_ema": a}, "params_ema", "params"),
    "nested": (
        lambda r, a: {"model": r, "model_ema": {"decay": 0.9, "state_dict": a}},
        "model_ema.state_dict",
        "model",
    ),
    "swa": (lambda r, a: {"state_dict": r, "swa_model": averaged(a)}, "swa_model", "state_dict"),
    "counter": (lambda r, a: {"raw": r, "smooth": averaged(a)}, "smooth", "raw"),
    "lightning": (
        lambda r, a: {"state_dict": below("model.", r) | below("ema_model.module.", a)},
        "state_dict.ema_model",
        "state_dict.model",
    ),
    "WeightAveraging": (
        lambda r, a: {
            "state_dict": below("model.", a),
            "current_model_state": below("model.", r),
            "averaging_state": {"n_averaged": torch.tensor(3)},
        },
        "state_dict",
        "current_model_state",
    ),
    "EMAHook": (
        lambda r, a: {
            "meta": {"mmengine_version": "0.10"},
            "state_dict": mmpretrain(a),
            "ema_state_dict": below("module.", mmpretrain(r)) | {"steps": torch.tensor(3)},
        },
        "state_dict",
        "ema_state_dict",
    ),
    "flat": (lambda r, a: below("model.", r) | below("ema.", a), "ema", "model"),
}
"""Forms of a file with raw weights and their average, and the keys of the average and of the others."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds val/ of 5, 3 and 2 images, and config.json of a network for them."""
    folder = tmp_path_factory.mktemp("sets")
    write_images(folder / "val", 5, 0)
    for label, kept in ((1, 3), (2, 2)):
        for path in sorted((folder / "val" / f"class{label}").iterdir())[kept:]:
            path.unlink()
    config = configure(folder, folder, run={"precision": "fp32"})
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder


@pytest.fixture(scope="module")
def raw() -> State:
    return always(2).state_dict()


@pytest.fixture(scope="module")
def average() -> State:
    return always(0).state_dict()


def evaluated(folder: Path, path: Path | str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `evaluate` prints of a file of weights."""
    words = ["--recipe", str(folder / "config.json"), "--val", str(folder / "val"), "--device", "cpu"]
    main(["evaluate", str(path), *words, "--subnets", "0"])
    return capsys.readouterr().out.splitlines()


def kept(name: str, content: Any, folder: Path) -> Path:
    """The file of a form."""
    path = folder / f"{name}.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("form", ALONE)
def test_one_set_of_weights_is_found_in_every_form(
    folder: Path, tmp_path: Path, form: str, average: State, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is said of it: there is no other."""
    path = kept("one", ALONE[form](average), tmp_path)
    (line,) = evaluated(folder, path, capsys)
    assert line.startswith(f"{path}: Top-1 {AVERAGE:.3f} %")


@pytest.mark.parametrize("form", BOTH)
def test_the_average_is_taken_and_said_and_the_other_can_be(
    folder: Path, tmp_path: Path, form: str, raw: State, average: State, capsys: pytest.CaptureFixture[str]
) -> None:
    make, key, other = BOTH[form]
    path = kept("two", make(raw, average), tmp_path)
    said, line = evaluated(folder, path, capsys)
    assert (
        said
        == f"takes the average of the weights under {key} in {path}; others that it holds: {path}#{other}"
    )
    assert line.startswith(f"{path}: Top-1 {AVERAGE:.3f} %")
    (line,) = evaluated(folder, f"{path}#{other}", capsys)
    assert line.startswith(f"{path}#{other}: Top-1 {RAW:.3f} %")
    (line,) = evaluated(folder, f"{path}#{key}", capsys)
    assert line.startswith(f"{path}#{key}: Top-1 {AVERAGE:.3f} %")


def test_safetensors_can_hold_two_sets_as_well(
    folder: Path, tmp_path: Path, raw: State, average: State, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "two.safetensors"
    save_file(below("model.", raw) | below("model_ema.module.", average), path)
    said, line = evaluated(folder, path, capsys)
    assert said.startswith(f"takes the average of the weights under model_ema in {path}")
    assert f"Top-1 {AVERAGE:.3f} %" in line
    assert f"Top-1 {RAW:.3f} %" in evaluated(folder, f"{path}#model", capsys)[0]


def test_export_and_analyses_take_the_same_and_say_it(
    folder: Path, tmp_path: Path, raw: State, average: State, capsys: pytest.CaptureFixture[str]
) -> None:
    path = kept("timm", {"state_dict": raw, "state_dict_ema": average}, tmp_path)
    recipe = ["--recipe", str(folder / "config.json")]
    for source, expected in ((path, average), (f"{path}#state_dict", raw)):
        output = tmp_path / f"x{expected is raw}.safetensors"
        main(["export", str(source), *recipe, "--format", "safetensors", "-o", str(output)])
        said = capsys.readouterr().out
        assert ("takes the average of the weights under state_dict_ema" in said) == (expected is average)
        assert torch.equal(open_trained(output).weights["fc.bias"], expected["fc.bias"])
    words = ["--val", str(folder / "val"), "--device", "cpu", "-o", str(tmp_path / "analysis")]
    main(["analyze", "delete-one", str(path), f"{path}#state_dict", *recipe, *words])
    assert capsys.readouterr().out.count("takes the average of the weights") == 1
    told = (tmp_path / "analysis" / "delete-one.json").read_text()
    assert f"{tmp_path.name}/timm#state_dict" in told


def test_training_starts_from_the_average_and_says_it(
    folder: Path, tmp_path: Path, raw: State, average: State
) -> None:
    path = kept("deit", {"model": raw, "model_ema": average}, tmp_path)
    for source, expected, said in ((str(path), average, "under model_ema"), (f"{path}#model", raw, "")):
        config = configure(folder, tmp_path, model={"weights": source})
        network = build_network(config, 3, torch.device("cpu"))
        assert torch.equal(network.fc.bias, expected["fc.bias"])  # type: ignore[union-attr, arg-type]
        assert said in network.origin
        assert bool(network.origin) == bool(said)


def test_a_runs_own_checkpoint_has_raw_weights_too(raw: State, average: State, tmp_path: Path) -> None:
    """Those under `network`; its average is what a file of weights gives."""
    content = {"format": 2, "network": raw, "ema": averaged(average)}
    network = create_model("cifar_resnet20", 3)
    assert torch.equal(take(network, content, tmp_path).weights["fc.bias"], average["fc.bias"])
    assert torch.equal(take(network, content, tmp_path, "network").weights["fc.bias"], raw["fc.bias"])
    assert torch.equal(take(network, content, tmp_path, "ema").weights["fc.bias"], average["fc.bias"])


def test_an_average_of_parameters_alone_is_not_taken_and_said(
    raw: State, average: State, tmp_path: Path
) -> None:
    """Without batch norm's statistics it is no network."""
    parameters = {name: average[name] for name, _ in always(0).named_parameters()}
    taken = take(create_model("cifar_resnet20", 3), {"model": raw, "ema": parameters}, tmp_path)
    assert torch.equal(taken.weights["fc.bias"], raw["fc.bias"])
    assert "not their average under ema: it lacks bn1.running_mean" in taken.note


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            lambda r, a: {"student": r, "teacher": a},
            "holds 2 sets of weights of the network; allowed: .*#student",
        ),
        (
            lambda r, a: {"ema_fast": r, "ema_slow": a},
            "holds 2 averages of the network; allowed: .*#ema_fast",
        ),
        (lambda r, a: {"epoch": 3, "args": {"lr": 0.1}}, "holds no weights.*; it has: epoch, args"),
        (lambda r, a: [r], "holds no weights.*; it is a list"),
        (lambda r, a: {}, "holds no weights.*; it has: nothing"),
        (
            lambda r, a: {"state_dict": nn.Linear(2, 2).state_dict()},
            r"of another architecture: it lacks bn1\.bias \(and \d+ more\) and has bias \(and 1 more\) under",
        ),
    ],
)
def test_what_holds_no_weights_or_too_many_says_what_it_has(
    tmp_path: Path, raw: State, average: State, content: Any, told: str
) -> None:
    path = kept("w", content(raw, average), tmp_path)
    with pytest.raises(CheckpointError, match=told):
        load_weights(create_model("cifar_resnet20", 3), path)


def test_an_unknown_key_is_told_with_those_that_there_are(tmp_path: Path, raw: State, average: State) -> None:
    path = kept("w", {"state_dict": raw, "state_dict_ema": average}, tmp_path)
    with pytest.raises(CheckpointError, match="no weights under nix; allowed: state_dict, state_dict_ema"):
        load_weights(create_model("cifar_resnet20", 3), Path(f"{path}#nix"))


def test_a_file_may_have_the_sign_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a#b.pth").touch()
    assert split_key(tmp_path / "a#b.pth") == (tmp_path / "a#b.pth", "")
    assert split_key(tmp_path / "a#b.pth#ema") == (tmp_path / "a#b.pth", "ema")
    assert split_key(Path("a.pth")) == (Path("a.pth"), "")


class _Own:
    """A class of somebody's program."""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"args": Path("/x")}, r"pathlib\.\w*PosixPath, whose code is never run; allowed: the weights alone"),
        (
            {"best": _Own()},
            r"test_sets\._Own, whose code is never run; allowed: .*'w\.pth', weights_only=False",
        ),
        ({"best": np.str_("a")}, r"numpy\.dtypes\.StrDType, whose code is never run"),
        ({"best": np.zeros(2)}, r"numpy\.[\w.]+, whose code is never run"),
    ],
)
def test_the_class_that_is_refused_is_named_and_the_way_out(
    tmp_path: Path, raw: State, content: Any, told: str
) -> None:
    path = kept("w", {"state_dict": raw} | content, tmp_path)
    with pytest.raises(CheckpointError, match=told):
        load_weights(create_model("cifar_resnet20", 3), path)
    state = torch.load(path, weights_only=False)["state_dict"]  # the line of the message
    torch.save(state, tmp_path / "weights.pth")
    load_weights(create_model("cifar_resnet20", 3), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        ({"class_to_idx": {"b": 0, "a": 2, "c": 1}}, ("b", "c", "a")),
        ({"classes": ["x", "y", "z"]}, ("x", "y", "z")),
        ({"classes": ["x", "y"]}, ("x", "y")),
        ({"class_to_idx": {"b": 0, "a": 7, "c": 1}}, ()),
        ({"class_to_idx": 3, "classes": [1, 2, 3]}, ()),
        ({}, ()),
    ],
)
def test_class_names_in_a_file_are_read(
    folder: Path, tmp_path: Path, raw: State, content: Any, classes: tuple[str, ...]
) -> None:
    assert classes_of(content) == classes
    path = kept("w", {"state_dict": copy.copy(raw)} | content, tmp_path)
    known = classes if len(classes) == 3 else ()  # as many as outputs
    assert open_trained(path, recipe_name=str(folder / "config.json")).classes == known


def test_keys_may_have_any_characters(tmp_path: Path, raw: State, average: State) -> None:
    path = kept("w", {"a/b": raw, "a#b": average}, tmp_path)
    assert split_key(Path(f"{path}#a#b")) == (path, "a#b")
    recipe = tmp_path / "config.json"
    recipe.write_text(json.dumps(to_dict(configure(tmp_path, tmp_path))))
    for key, state in (("a/b", raw), ("a#b", average)):
        trained = open_trained(Path(f"{path}#{key}"), recipe_name=str(recipe))
        assert torch.equal(trained.weights["fc.bias"], state["fc.bias"])
        assert str(trained.path) == f"{path}#{key}"


def test_two_sets_of_one_key_are_told(tmp_path: Path, raw: State, average: State) -> None:
    network = create_model("cifar_resnet20", 3)
    with pytest.raises(CheckpointError, match=r"w holds 2 sets under a\.b; allowed: a key of one"):
        take(network, {"a.b": raw, "a": {"b": average}}, Path("w"), "a.b")


def test_mappings_that_share_others_end_in_a_message(raw: State) -> None:
    """A file of a megabyte can stand for billions of values."""
    network = create_model("cifar_resnet20", 3)
    inner: dict[str, Any] = {str(number): 0 for number in range(2000)}
    for _ in range(2):
        inner = {str(number): inner for number in range(2000)}
    with pytest.raises(CheckpointError, match="w holds more than 1000000 values in mappings"):
        take(network, {"x": inner, "state_dict": raw}, Path("w"))


def test_names_of_classes_that_do_not_fit_are_told(folder: Path, tmp_path: Path, raw: State) -> None:
    for number, names in enumerate((["x", "y"], ["x", "x", "y"])):
        path = kept(f"w{number}", {"state_dict": copy.copy(raw), "classes": names}, tmp_path)
        trained = open_trained(path, recipe_name=str(folder / "config.json"))
        assert trained.classes == ()
        assert trained.note.endswith("are not those of 3 different outputs")
