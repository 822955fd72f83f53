"""Weights of other programs, whose outputs are class folders in another order: asked for, or told of."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.utils.misc import natural_key

from fasttrain import build, loading
from fasttrain.config import Config, to_dict
from fasttrain.distributed import Process
from fasttrain.errors import CheckpointError
from fasttrain.evaluation import evaluate
from fasttrain.hardware import choose_precision
from fasttrain.launch.preflight import check_run
from fasttrain.models import create_model
from fasttrain.recipes import recipe
from fasttrain.trained import _ordered, metadata, open_trained

from .test_cli import run

FOLDERS = {
    "numbers": [str(number) for number in range(12)],
    "case": ["apple", "Zebra", "mango", "Yak"],
    "numbered": ["c1", "c2", "c10", "c11", "c20"],
}


@dataclass(frozen=True)
class Foreign:
    """Images in class folders, and weights that know all of them, their outputs sorted as timm sorts."""

    classes: list[str]
    val: Path
    weights: Path
    recipe: Path

    @property
    def config(self) -> Config:
        """Of a run that starts from them."""
        base = recipe("demo")
        data = replace(base.data, builtin="none", num_classes=0, train=str(self.val), val=str(self.val))
        model = replace(base.model, name="cifar_resnet20", weights=str(self.weights))
        return replace(base, data=data, model=model, run=replace(base.run, batch=8, device="cpu"))

    def evaluation(self, *more: str | Path) -> list[str]:
        """Words of the command."""
        known = () if self.weights.suffix == ".safetensors" else ("--recipe", self.recipe)
        words = ("evaluate", self.weights, *known, "--val", self.val, "--subnets", "0", "--device", "cpu")
        return [str(word) for word in (*words, *more)]


@pytest.fixture(scope="module", params=list(FOLDERS))
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    folder, names = tmp_path_factory.mktemp("foreign"), FOLDERS[request.param]
    classes = sorted(names, key=natural_key)
    random, images = np.random.default_rng(0), []
    for name in classes:
        (folder / "val" / name).mkdir(parents=True)
        pattern = random.integers(20, 236, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
        for index in range(2):
            pixels = (pattern + random.integers(-3, 4, pattern.shape)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "val" / name / f"{index}.png")
            images.append(torch.from_numpy(pixels))
    given = Foreign(classes, folder / "val", folder / "weights.pth.tar", folder / "config.json")
    mean, std = (torch.tensor(values) for values in (given.config.data.mean, given.config.data.std))
    seen = ((torch.stack(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.manual_seed(0)
    network = create_model("cifar_resnet20", len(classes)).train()
    with torch.no_grad():
        for _ in range(20):  # for the running statistics
            network(seen)
    network.eval()
    features: list[torch.Tensor] = []
    with torch.no_grad():
        handle = network.fc.register_forward_pre_hook(lambda _, x: features.append(x[0]))  # type: ignore[union-attr]
        network(seen)
        handle.remove()
        (means,) = features[0].double().unflatten(0, (-1, 2)).mean(1)[None]
        centred = means - means.mean(0)
        # the nearest class mean: |x - m|^2 without |x|^2
        network.fc.weight.copy_(centred)  # type: ignore[operator, union-attr]
        network.fc.bias.copy_(-(centred * (means + means.mean(0))).sum(1) / 2)  # type: ignore[operator, union-attr]
    torch.save({"state_dict": network.state_dict()}, given.weights)
    values = to_dict(replace(given.config, model=replace(given.config.model, weights="")))
    given.recipe.write_text(json.dumps(values))
    return given


GUESS = "the outputs are taken to be "


def test_the_order_that_is_asked_for_gives_the_right_accuracy(
    foreign: Foreign, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, out, err = run(capsys, *foreign.evaluation())
    right = sum(ours == theirs for ours, theirs in zip(sorted(foreign.classes), foreign.classes, strict=True))
    assert (status, err) == (0, "")
    assert f"Top-1 {100 * right / len(foreign.classes):.3f} %" in out
    assert f"{GUESS}{foreign.val}'s folders sorted as text: " in out
    (tmp_path / "names").write_text("\n".join(foreign.classes))
    for order in ("natural", str(tmp_path / "names")):
        status, out, err = run(capsys, *foreign.evaluation("--classes", order))
        assert (status, err) == (0, "")
        assert "Top-1 100.000 %" in out
        assert GUESS not in out


@pytest.mark.parametrize("foreign", ["case"], indirect=True)
def test_names_travel_with_what_is_exported(
    foreign: Foreign, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    words = ("export", foreign.weights, "--recipe", foreign.recipe, "--format", "safetensors", "-o", path)
    asked = (*words, "--classes", "natural", "--val", foreign.val, "--device", "cpu")
    status, out, err = run(capsys, *map(str, asked))
    assert (status, err, "Top-1 100.000 %" in out) == (0, "", True)
    assert list(open_trained(path).classes) == foreign.classes
    known = replace(foreign, weights=path)
    status, out, _ = run(capsys, *known.evaluation())
    assert (status, "Top-1 100.000 %" in out, GUESS in out) == (0, True, False)
    status, out, err = run(capsys, *map(str, (*words, "--force", "--classes", "natural")))
    assert (status, "allowed: with --val or --train, or a file" in err) == (2, True)


@pytest.mark.parametrize("foreign", ["case"], indirect=True)
def test_an_analysis_takes_the_order(
    foreign: Foreign, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["analyze", "delete-one", foreign.weights, "--recipe", foreign.recipe, "--val", foreign.val]
    own = [*words, "-o", tmp_path, "--device", "cpu"]
    for more, told in ((("--classes", "natural"), False), ((), True)):
        status, out, err = run(capsys, *map(str, (*own, *more)))
        assert (status, err, GUESS in out) == (0, "", told)
        assert ("100.00" in out) != told


def starting_accuracy(config: Config) -> float:
    """Top-1 of a run's network as it starts."""
    process = Process(0, 1, torch.device("cpu"))
    folders = loading.open_folders(config)
    assert folders.val is not None
    assert folders.val.classes == folders.train.classes
    network = build.build_network(config, len(folders.train.classes), process.device)
    precision = choose_precision("fp32", process.device)
    with closing(loading.build_eval_loader(config, folders.val, process, precision.image_dtype)) as loader:
        batches = ((each.images, each.targets) for each in loader)
        return evaluate(network, [network.full], batches, precision)[0].top1


def test_fine_tuning_takes_the_order(foreign: Foreign, tmp_path: Path) -> None:
    config = replace(foreign.config, run=replace(foreign.config.run, folder=str(tmp_path)))
    notes = "\n".join(check_run(config))
    assert GUESS in notes
    assert "--data.classes natural" in notes
    assert starting_accuracy(config) < 100
    asked = replace(config, data=replace(config.data, classes="natural"))
    assert GUESS not in "\n".join(check_run(asked))
    assert starting_accuracy(asked) == 100
    fresh = replace(config, model=replace(config.model, new_head=True))
    assert GUESS not in "\n".join(check_run(fresh))


def test_fine_tuning_follows_the_names_that_weights_have(foreign: Foreign, tmp_path: Path) -> None:
    """In whatever order; other classes are refused, or given new names in a file."""
    from fasttrain.formats import write_safetensors

    trained = replace(
        open_trained(foreign.weights, recipe_name=str(foreign.recipe)), classes=tuple(foreign.classes)
    )
    write_safetensors(trained.network(), tmp_path / "named.safetensors", metadata(trained))
    model = replace(foreign.config.model, weights=str(tmp_path / "named.safetensors"))
    config = replace(foreign.config, model=model)
    assert loading.open_folders(config).train.classes == tuple(foreign.classes)
    assert starting_accuracy(config) == 100
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for name in foreign.classes:
        (renamed / f"my {name}").symlink_to(foreign.val / name)
    other = replace(config, data=replace(config.data, train=str(renamed), val=str(renamed)))
    with pytest.raises(CheckpointError, match=r"was trained on other classes .*--model\.new-head"):
        loading.open_folders(other)
    (renamed / "my other").symlink_to(foreign.val / foreign.classes[0])  # not as many classes, either
    with pytest.raises(CheckpointError, match=r"was trained on other classes .*--model\.new-head"):
        loading.open_folders(replace(other, data=replace(other.data, num_classes=20)))
    (renamed / "my other").unlink()
    (tmp_path / "names").write_text("\n".join(f"my {name}" for name in foreign.classes))
    listed = replace(other, data=replace(other.data, classes=str(tmp_path / "names")))
    assert starting_accuracy(listed) == 100


@pytest.mark.parametrize("foreign", ["case"], indirect=True)
def test_a_list_of_as_many_names_as_outputs_is_wanted(
    foreign: Foreign, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = tmp_path / "names"
    names.write_text("\n".join(foreign.classes[1:]))
    status, _, err = run(capsys, *foreign.evaluation("--classes", names))
    count = len(foreign.classes)
    assert (status, f"holds {count - 1} names; allowed: the {count} of" in err) == (2, True)
    names.write_text("\n".join(["x", *foreign.classes[1:]]))
    status, _, err = run(capsys, *foreign.evaluation("--classes", names))
    assert (status, "1 missing (x), 1 extra (" in err) == (4, True)
    status, _, err = run(capsys, *foreign.evaluation("--classes", tmp_path / "none"))
    assert (status, "cannot be read: no such file" in err) == (2, True)


def test_an_order_against_the_names_in_the_weights_is_said(foreign: Foreign, tmp_path: Path) -> None:
    trained = replace(open_trained(foreign.weights, recipe_name=str(foreign.recipe)), classes=("c", "a", "b"))
    assert _ordered(trained, "").note == trained.note
    said = _ordered(trained, "natural")
    assert said.classes == ("a", "b", "c")
    assert said.note.endswith(f"natural gives another order than {foreign.weights} names: c, a, b")
