"""Networks: timm's to the bit, state dicts both ways, initialization, parts of blocks, running statistics."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fasttrain.errors import ConfigError
from fasttrain.models import batch_norms, create_model, frozen_statistics
from fasttrain.subnets import BlockRef, Part, PrefixTree, ordered_subnet
from tests.networks import TINY, tiny_images, tiny_resnet

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnext50_32x4d": (3, 4, 6, 3),
    "wide_resnet50_2": (3, 4, 6, 3),
    "resnet50d": (3, 4, 6, 3),
    "resnet26d": (2, 2, 2, 2),
    "mobilenetv3_large_100": (1, 2, 3, 4, 2, 3),
    "mobilenetv3_large_150d": (2, 3, 4, 5, 3, 4),
    "mobilenetv3_small_100": (1, 2, 3, 2, 3),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_full_depth_is_timms_forward_to_the_bit(name: str) -> None:
    network = create_model(name, 11)
    reference = timm.create_model(name, num_classes=11)
    reference.load_state_dict(network.state_dict())  # the same names and shapes, or this raises
    images = torch.randn(2, 3, 64, 64)
    assert network.depths == DEPTHS[name]
    assert network.reduction == 32
    for mode in (True, False):
        network.train(mode)
        reference.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(network(images), reference(images), rtol=0, atol=0)
    for (key, ours), theirs in zip(
        network.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=key)


def test_weights_go_to_torchvision_and_back() -> None:
    network = create_model("resnet50", 10).eval()
    reference = torchvision.models.resnet50(num_classes=10).eval()
    reference.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference(images), rtol=1e-5, atol=1e-6)
    network.load_state_dict(reference.state_dict())


@pytest.mark.parametrize(
    ("layers", "parameters"), [(20, 0.27e6), (32, 0.46e6), (44, 0.66e6), (56, 0.85e6), (110, 1.7e6)]
)
def test_cifar_resnets_have_the_papers_size(layers: int, parameters: float) -> None:
    """He et al. 2016, Table 6: parameters in millions, two digits; 6n + 2 weighted layers."""
    network = create_model(f"cifar_resnet{layers}", 10)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.03)
    assert network.depths == ((layers - 2) // 6,) * 3
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == layers
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_bottleneck_variant_for_small_images_keeps_their_resolution() -> None:
    """32 pixels end as 4; weights and blocks are those of timm's network."""
    network = create_model("cifar_resnet50", 10)
    network.load_state_dict(timm.create_model("resnet50", num_classes=10).state_dict())
    sides: list[int] = []
    for stage in network.stages:
        stage[-1].register_forward_hook(lambda _m, _a, out: sides.append(out.shape[-1]))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert sides == [32, 16, 8, 4]
    assert network.reduction == 8
    assert network.depths == (3, 4, 6, 3)
    plain = timm.create_model("resnet50", num_classes=10).eval()
    plain.load_state_dict(network.state_dict())
    x = torch.randn(2, 64, 32, 32)
    blocks = [block for stage in network.eval().stages for block in stage]
    with torch.no_grad():
        expected = plain.layer4(plain.layer3(plain.layer2(plain.layer1(x))))
        for block in blocks:
            x = block(x)
    assert torch.equal(x, expected)


def test_initialization_is_the_published_codes() -> None:
    network = create_model("resnet50", 1000)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size) / module.groups
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        elif isinstance(module, _BatchNorm):
            assert torch.all(module.weight == 1)
            assert torch.all(module.bias == 0)
    assert float(network.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.01)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_225",
        "convnext_tiny.fb_in1k",
        "resnet51",
        "mobilenetv4_conv_small",
        "cifar_resnet21",
        "",
    ],
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="allowed: a timm ResNet"):
        create_model(name, 10)


def test_classes_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="num_classes is 0"):
        create_model("resnet18", 0)


@pytest.mark.parametrize("depths", [(1, 1), (0, 1, 1), (1, 1, 4), (1, 1, 1, 1)])
def test_depths_that_do_not_fit_are_refused(depths: tuple[int, ...]) -> None:
    network = tiny_resnet((2, 3, 2))
    with pytest.raises(ValueError, match="blocks per stage"):
        network(tiny_images(2, 32), depths)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_branch_and_shortcut_add_up_to_the_block(bottleneck: bool) -> None:
    """A block is relu(branch + shortcut); its parts alone are relu(branch) and relu(shortcut)."""
    network = tiny_resnet((2, 2), bottleneck=bottleneck).eval()
    for stage, block in ((0, 0), (0, 1), (1, 0), (1, 1)):
        module = network.stages[stage][block]
        last = "conv3" if bottleneck else "conv2"
        norm = getattr(module, "bn3" if bottleneck else "bn2")
        sums: list[torch.Tensor] = []
        handle = norm.register_forward_hook(lambda _m, _a, out, sums=sums: sums.append(out.detach().clone()))
        channels = module.conv1.in_channels  # type: ignore[union-attr]
        x = torch.randn(2, channels, 8, 8, dtype=torch.float64)  # type: ignore[arg-type]
        whole = network.run_block(BlockRef(stage, block), x)
        branch = network.run_block(BlockRef(stage, block, Part.BRANCH), x)
        shortcut = network.run_block(BlockRef(stage, block, Part.SHORTCUT), x)
        handle.remove()
        assert hasattr(module, last)
        torch.testing.assert_close(branch, sums[0].relu())
        projected = x if module.downsample is None else module.downsample(x)  # type: ignore[operator]
        torch.testing.assert_close(shortcut, projected.relu())
        torch.testing.assert_close(whole, (sums[0] + projected).relu())
    assert "downsample" not in "".join(dict(network.stages[0][1].named_modules()))


def buffers(network: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in network.buffers()]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("family", TINY)
def test_running_statistics_are_the_main_networks_alone(family: str) -> None:
    network = TINY[family]((2, 2)).train()
    alone = copy.deepcopy(network)
    images, small = tiny_images(3, 32), tiny_images(3, 16, seed=1)
    trees = [
        PrefixTree([network.full, ordered_subnet((1, 2)), ordered_subnet((2, 1))]),
        PrefixTree([network.full, ordered_subnet((2, 1))]),
    ]
    network.forward_trees([images, small], trees)
    alone(images)
    assert same(buffers(network), buffers(alone))


@pytest.mark.parametrize("family", TINY)
def test_subnets_leave_running_statistics_alone(family: str) -> None:
    network = TINY[family]((2, 2)).train()
    before = buffers(network)
    network(tiny_images(3, 32), (1, 1))
    network.forward_tree(tiny_images(3, 32), [(1, 2), (2, 2)])
    assert same(before, buffers(network))
    network(tiny_images(3, 32))
    assert not same(before, buffers(network))


def test_frozen_statistics_thaw_after_an_error() -> None:
    network = tiny_resnet((1, 1))
    with pytest.raises(RuntimeError), frozen_statistics(network):
        raise RuntimeError
    assert all(layer.track_running_stats for layer in batch_norms(network))
