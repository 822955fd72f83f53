"""Every recipe's resolved configuration, so that a changed default shows in review.

`python -m tests.recipes.test_recipes` writes the snapshots anew.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fasttrain import build
from fasttrain.config import Config, Data, Method, Model, Run, from_dict, to_dict
from fasttrain.distributed import Process
from fasttrain.errors import ConfigError
from fasttrain.hardware import Precision
from fasttrain.recipes import RECIPES, describe, recipe

FOLDER = Path(__file__).parent


def snapshot(name: str) -> str:
    return json.dumps(to_dict(RECIPES[name]()), indent=1) + "\n"


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_as_recorded(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == snapshot(name)
    assert RECIPES[name]().recipe == name
    assert describe(name)


def test_no_snapshot_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_configurations_survive_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(recipe(name))))
    assert recipe(str(path)) == recipe(name)


def test_published_twins_differ_from_their_fast_ones_in_speed_alone() -> None:
    """What decides the result (method, optimizer, epochs, batch) is the same, the inputs' making apart."""
    twins = [name for name in RECIPES if f"{name}-published" in RECIPES]
    assert len(twins) == 12
    for name in twins:
        fast, published = recipe(name), recipe(f"{name}-published")
        assert published.optim == fast.optim
        assert (published.run.epochs, published.run.batch) == (fast.run.epochs, fast.run.batch)
        inputs = {"subnet_inputs": "full", "sizes": (), "sizes_per_step": 1}
        assert replace(published.method, **inputs) == replace(fast.method, **inputs)  # type: ignore[arg-type]
    assert recipe("rn50-stpp-a1-published").method.sizes == tuple(range(86, 201))


def test_unknown_recipes_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'nix'; allowed: rn50-ct-200"):
        recipe("nix")
    with pytest.raises(ConfigError, match="cannot read"):
        recipe(str(tmp_path / "none.json"))
    for text, message in (
        ("{", "not JSON"),
        ("[]", "no configuration"),
        ('{"optim": {"foo": 1}}', r"unknown field optim\.foo; allowed: clip"),
        ('{"nix": {}}', "unknown section 'nix'"),
        ('{"optim": {"lr": -1}}', "optim.lr is -1"),
        ('{"optim": {"lr": "fast"}}', "optim.lr is 'fast'"),
        ('{"method": {"sampling": "sideways"}}', "method.sampling is 'sideways'"),
        ('{"run": {"epochs": 1.5}}', "run.epochs is 1.5"),
        ('{"data": {"mean": [0.5]}}', "data.mean is"),
    ):
        path = tmp_path / "config.json"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            recipe(str(path))


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (Data, "crop", 0),
        (Data, "flip", 1.5),
        (Data, "std", (0.0, 1.0, 1.0)),
        (Data, "val_resize", 100),
        (Run, "batch", 0),
        (Run, "epochs", 0),
        (Run, "name", "../x"),
        (Method, "amplitude", 0.0),
    ],
)
def test_values_out_of_range_are_refused(section: type, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        section(**{field: value})


def test_sections_must_fit_each_other() -> None:
    with pytest.raises(ConfigError, match=r"at most data\.crop = 100"):
        Config(data=Data(crop=100), method=Method(subnet_inputs="downscaled", sizes=(128,)))
    with pytest.raises(ConfigError, match=r"below run\.epochs = 5"):
        Config(method=Method(start_epoch=5), run=Run(epochs=5))
    assert from_dict(to_dict(Config())) == Config()


def test_stpp_on_cifar_gets_off_the_ground() -> None:
    """KL- divides by the deviation of logits that start near zero: without care the first step destroys."""
    config = recipe("cifar10-resnet56-stpp")
    config = replace(config, model=Model(name="cifar_resnet20"), run=replace(config.run, batch=32, seed=1))
    cpu = torch.device("cpu")
    network = build.build_network(config, 10, cpu).train()
    step = build.build_step(config, network, Process(0, 1, cpu), Precision("fp32", "cpu"), 20)
    images, targets = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    small = [F.interpolate(images, (16, 16))]
    options = {"epoch": 0, "targets": targets}
    losses = [
        step(images, small, step=index, global_step=index, **options).loss.main.item()  # type: ignore[arg-type]
        for index in range(12)
    ]
    assert max(losses) < 3.5
    assert losses[-1] < losses[0]


if __name__ == "__main__":
    for each in RECIPES:
        (FOLDER / f"{each}.json").write_text(snapshot(each))
