"""Weights given to a run: taken whole, or all but the classifier where that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fasttrain.build import build_network
from fasttrain.config import Config, Method, Model, Optim
from fasttrain.errors import CheckpointError, ConfigError
from fasttrain.models import StagedNetwork, create_model
from fasttrain.recipes import recipe
from fasttrain.reevaluate import evaluate_checkpoint
from fasttrain.trainer import train
from tests.test_trainer import CLASSES, configure, write_images

CPU = torch.device("cpu")
HEAD = ["fc.weight", "fc.bias"]


def given(path: Path, name: str = "cifar_resnet20", classes: int = 11) -> StagedNetwork:
    """A network whose weights lie in a file, none of them as a seed would make them."""
    network = create_model(name, classes)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(1)
    save_file(network.state_dict(), path)
    return network


def starting(path: str | Path, *, new_head: bool, name: str = "cifar_resnet20") -> Config:
    base = recipe("demo")
    data = replace(base.data, num_classes=0)
    return replace(base, data=data, model=Model(name=name, weights=str(path), new_head=new_head))


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_mobilenetv3_large"])
@pytest.mark.parametrize("classes", [3, 11])
def test_a_new_head_is_as_initialized_and_the_rest_is_given(tmp_path: Path, name: str, classes: int) -> None:
    """Also for as many classes: who asks for a new head gets one."""
    source = given(tmp_path / "w.safetensors", name).state_dict()
    network = build_network(starting(tmp_path / "w.safetensors", new_head=True, name=name), classes, CPU)
    fresh = build_network(starting("", new_head=False, name=name), classes, CPU).state_dict()
    head = network.classifier_names
    assert [each.rpartition(".")[2] for each in head] == ["weight", "bias"]
    for key, value in network.state_dict().items():
        assert torch.equal(value, (fresh if key in head else source)[key]), key


def test_a_backbone_without_a_head_will_do(tmp_path: Path) -> None:
    source = given(tmp_path / "w.safetensors").state_dict()
    torch.save({key: value for key, value in source.items() if key not in HEAD}, tmp_path / "w.pt")
    network = build_network(starting(tmp_path / "w.pt", new_head=True), 3, CPU)
    assert torch.equal(network.state_dict()["conv1.weight"], source["conv1.weight"])
    with pytest.raises(CheckpointError, match=r"another architecture: it lacks fc\.bias"):
        build_network(starting(tmp_path / "w.pt", new_head=False), 3, CPU)


def test_other_classes_are_refused_unless_a_new_head_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    given(path)
    with pytest.raises(CheckpointError, match=r"fc\.\w+ has shape \(11.*network's is \(3.*--model\.new-head"):
        build_network(starting(path, new_head=False), 3, CPU)
    with pytest.raises(CheckpointError, match="another architecture") as error:
        build_network(starting(path, new_head=True, name="cifar_resnet32"), 3, CPU)
    assert "new-head" not in str(error.value)
    with pytest.raises(CheckpointError, match="no checkpoint at nowhere"):
        build_network(starting("nowhere", new_head=True), 3, CPU)
    with pytest.raises(ConfigError, match=r"model\.new_head is True and model\.weights is empty; allowed"):
        build_network(starting("", new_head=True), 3, CPU)


def test_fine_tuning_from_another_runs_weights(tmp_path: Path) -> None:
    """From a run of three classes to one of two, by the recipe's method: logged, and evaluated again."""
    write_images(tmp_path / "three" / "train", 14, 0)
    write_images(tmp_path / "three" / "val", 5, 1)
    first = train(configure(tmp_path / "three", tmp_path / "first", evaluation={"subnets": 0}))
    for part in ("train", "val"):
        for label in range(CLASSES - 1):
            target = tmp_path / "two" / part / f"kind{label}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(tmp_path / "three" / part / f"class{label}")
    weights = Path(first.folder) / "checkpoints" / "best.safetensors"
    config = replace(
        configure(tmp_path / "two", tmp_path / "second", evaluation={"subnets": 0}),
        model=Model(name="cifar_resnet20", weights=str(weights), new_head=True),
        method=recipe("rn50-st-finetune").method,
        optim=Optim(lr=0.01),
    )
    second = train(config)
    log = (Path(second.folder) / "log.txt").read_text()
    assert f"starts from the weights in {weights}, but a new classifier (fc.weight, fc.bias)" in log
    assert second.main is not None
    again = evaluate_checkpoint(Path(second.folder) / "checkpoints" / "best.pt", subnets=0, device="cpu")
    assert again.main.images == second.main.images == 10


def test_the_recipe_is_the_papers_idea() -> None:
    config = recipe("rn50-st-finetune")
    assert config.model.new_head
    assert config.method == Method(subnets=1, supervision="ce_target", normalize="none")
