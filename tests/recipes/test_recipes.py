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
from fasttrain.recipes import RECIPES, describe, published_top1, recipe, sources

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


A_STEP = (
    *("cifar10-mobilenetv3-st", "cifar10-resnet50-st", "rn50-ct-rsb-a2", "rn50-augsub-rsb-a2"),
    *("vit-s-augsub-deit3-800", "vit-s-st-100"),
)


@pytest.mark.parametrize("name", A_STEP)
def test_a_recipe_trains_a_step(name: str) -> None:
    """As its configuration says, on two small images; its networks have the papers' subnets."""
    config = recipe(name)
    side = min(config.data.crop, 64)
    data = replace(config.data, crop=side, val_crop=side)
    config = replace(config, data=data, run=replace(config.run, batch=2))
    cpu = torch.device("cpu")
    network = build.build_network(config, 10, cpu).train()
    step = build.build_step(config, network, Process(0, 1, cpu), Precision("fp32", "cpu"), 20)
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    result = step(torch.randn(2, 3, side, side), [], torch.arange(2), epoch=6, step=0, global_step=120)
    assert torch.isfinite(result.loss.total)
    assert result.gradient_norm > 0
    assert not any(torch.equal(value, before[key]) for key, value in network.named_parameters())
    walked = build.subnets_to_evaluate(config, network, -1)
    assert len(walked) == (144 if "mobilenetv3" in name else 12 if name.startswith("vit-s") else 216)


def test_the_papers_settings() -> None:
    """SGD 0.05, weight decay 3e-5, 500 epochs, batch 64; LAMB 5e-3, 0.02, 300 epochs, batch 2048."""
    for name in RECIPES:
        config = recipe(name)
        optim, run = config.optim, config.run
        if name.startswith(("cifar10-mobilenetv3", "cifar10-resnet50")):
            assert (optim.name, optim.lr, optim.weight_decay) == ("sgd", 0.05, 3e-5)
            assert (run.epochs, run.batch) == (500, 64)
        if name.startswith("rn101-") and name.endswith("-100"):
            assert (config.model.name, run.epochs, run.batch) == ("resnet101", 100, 512)
        if name.startswith("vit-") and name.endswith("-100"):
            assert (optim.name, optim.lr, run.epochs, run.batch) == ("adamw", 2e-3, 100, 2048)
        if name.endswith("rsb-a2"):
            assert (optim.name, optim.lr, optim.weight_decay, optim.warmup_epochs) == ("lamb", 5e-3, 0.02, 5)
            assert (config.method.main_loss, config.model.drop_path, config.data.repeats) == ("bce", 0.05, 3)
            assert (run.epochs, run.batch) == (300, 2048)
    assert published_top1("rn50-ct-rsb-a2") == 79.7


def test_augsubs_recipes_have_twins_that_differ_in_the_method_alone() -> None:
    """Learning rates, weight decays, drop-paths, epochs and batches are the table's."""
    of_augsub = [name for name in RECIPES if "-augsub-" in name]
    assert len(of_augsub) == 3 + 3 + 2 + 3 * 4 + 3
    for name in of_augsub:
        twin = name.replace("-augsub-", "-ct-")
        ours, theirs = recipe(name), recipe(twin)
        assert (ours.method.name, ours.method.drop, ours.method.drop_ratio) == ("augsub", "masking", 0.5)
        own = {"name": "common", "backward": theirs.method.backward}
        assert replace(ours, recipe=twin, method=replace(ours.method, **own)) == theirs  # type: ignore[arg-type]
        top1 = published_top1(name), published_top1(twin)
        assert top1 == (None, None) or top1[0] > top1[1]  # type: ignore[operator]
        assert "Heo et al. 2023" in sources(name)
    small, huge = recipe("vit-s-augsub-deit3-800"), recipe("vit-h-augsub-deit3-400-224")
    assert (small.optim.name, small.optim.lr, small.optim.weight_decay) == ("lamb", 4e-3, 0.05)
    assert (small.run.epochs, small.run.batch, small.model.drop_path) == (800, 2048, 0.05)
    assert (huge.optim.name, huge.optim.lr, huge.optim.weight_decay) == ("adamw", 1e-5, 0.1)
    assert (huge.run.epochs, huge.run.batch, huge.model.drop_path) == (20, 512, 0.55)
    swin = recipe("swin-s-augsub-300")
    assert (swin.optim.name, swin.optim.lr, swin.optim.weight_decay, swin.optim.clip) == (
        "adamw",
        1e-3,
        0.05,
        5,
    )
    assert (swin.run.epochs, swin.run.batch, swin.optim.warmup_epochs) == (300, 1024, 20)
    assert (swin.model.drop_path, swin.method.mask_square) == (0.3, 32)
    mae = recipe("vit-l-augsub-mae-finetune")
    assert (mae.optim.lr, mae.optim.layer_decay, mae.run.epochs) == (4e-3, 0.75, 50)


def test_a_recipe_tells_its_sources() -> None:
    assert "AugSub's table (Heo et al. 2023)" in sources("rn101-ct-rsb-a2")
    assert "Swin transformers (Liu et al. 2021)" in sources("swin-b-ct-300")
    assert "the papers' CIFAR setting" in sources("cifar10-resnet50-st")
    for name in RECIPES:
        assert sources(name).startswith(describe(name))
    assert sources("runs/x/config.json") == ""


def test_unknown_recipes_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'nix'; allowed: rn50-ct-200"):
        recipe("nix")
    with pytest.raises(ConfigError, match="cannot read"):
        recipe(str(tmp_path / "none.json"))
    for text, message in (
        ("{", "not JSON"),
        ("[]", "no configuration"),
        ('{"optim": {"foo": 1}}', r"unknown field optim\.foo; allowed: betas"),
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
