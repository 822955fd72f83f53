"""Drop-path: where it sits, how often, and that it is off in evaluation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from fasttrain import build
from fasttrain.config import Config, Data, Model
from fasttrain.errors import ConfigError
from fasttrain.models import FusedBatchNorm, create_model, set_drop_path
from tests.networks import tiny_images, tiny_mobilenet, tiny_resnet


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_rates_are_timms(name: str) -> None:
    network = create_model(name, 5)
    set_drop_path(network, 0.3)
    reference = timm.create_model(name, num_classes=5, drop_path_rate=0.3)
    ours, theirs = (
        {own: module.drop_prob for own, module in each.named_modules() if isinstance(module, DropPath)}
        for each in (network, reference)
    )
    assert ours == pytest.approx(theirs)
    assert len(ours) == sum(network.depths) - 1


def test_a_forward_pass_is_timms_with_the_same_random_numbers() -> None:
    network = create_model("resnet18", 5).train()
    set_drop_path(network, 0.5)
    reference = timm.create_model("resnet18", num_classes=5, drop_path_rate=0.5).train()
    reference.load_state_dict(network.state_dict())
    images = torch.randn(4, 3, 64, 64)
    outputs = []
    for each in (network, reference):
        torch.manual_seed(3)
        outputs.append(each(images))
    assert torch.equal(*outputs)


def test_evaluation_and_rate_0_are_the_network_itself() -> None:
    network = tiny_resnet((2, 2)).eval()
    dropping, off = copy.deepcopy(network), copy.deepcopy(network)
    set_drop_path(dropping, 0.9)
    set_drop_path(off, 0.0)
    images = tiny_images(2, 32)
    assert torch.equal(dropping(images), network(images))
    assert not any(isinstance(module, DropPath) for module in off.modules())
    assert list(dropping.state_dict()) == list(network.state_dict())


def test_dropped_blocks_are_not_fused_with_their_residual() -> None:
    """A fused batch norm has added the shortcut before anything could drop the branch."""
    data = Data(crop=32, val_crop=32, val_resize=32)
    model = Model(name="cifar_resnet20", batch_norm="reference", drop_path=0.5)
    network = build.build_network(Config(data=data, model=model), 5, torch.device("cpu"))
    blocks: list[Any] = [block for stage in network.stages for block in stage]
    first, *others = blocks
    assert isinstance(first.bn2, FusedBatchNorm)
    assert all(type(block.bn2) is nn.BatchNorm2d and block.drop_path.drop_prob > 0 for block in others)


def test_other_families_have_it_too() -> None:
    network: Any = tiny_mobilenet((1, 2))
    set_drop_path(network, 0.4)
    assert [block.drop_path.drop_prob for block in network.stages[1]] == pytest.approx([0.2, 0.4])


def test_blocks_without_it_are_refused() -> None:
    network: Any = tiny_resnet((1, 1))
    network.layer2[0] = nn.Identity()
    with pytest.raises(ConfigError, match=r"model\.drop_path is 0\.1; allowed for ResNet, whose Identity"):
        set_drop_path(network, 0.1)
    with pytest.raises(ConfigError, match=r"model\.drop_path is 1\.0; allowed: 0 to 0\.99"):
        Model(drop_path=1.0)
