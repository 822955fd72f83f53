"""Fused batch norms and convolutions: the same network under the same names, whatever it is asked to do."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.accuracy import Comparison
from fasttrain.errors import ConfigError
from fasttrain.evaluation import estimate_statistics, evaluate
from fasttrain.hardware import Precision, choose_batch_norm, choose_conv1x1, choose_kernels
from fasttrain.models import (
    FusedBatchNorm,
    StagedNetwork,
    batch_norms,
    create_model,
    frozen_statistics,
    fuse_batch_norms,
    fuse_convolutions,
)
from fasttrain.models.fuse import SharingBottleneck, SharingProjection
from fasttrain.subnets import BlockRef, Part
from tests.networks import tiny_images, tiny_resnet

FP32 = Precision("fp32", "cpu")


def pair(
    network: StagedNetwork, implementation: str = "reference", *, convolutions: bool = False
) -> tuple[StagedNetwork, StagedNetwork]:
    """A network and its fused copy, in training mode."""
    for layer in batch_norms(network):
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.uniform_(layer.bias, -0.5, 0.5)
    fused = copy.deepcopy(network)
    fuse_batch_norms(fused, implementation)
    if convolutions:
        assert fuse_convolutions(fused) > 0
    return network.train(), fused.train()


def step(network: StagedNetwork, images: Tensor) -> dict[str, Tensor]:
    """Logits of the main network and of two subnets, gradients and running statistics."""
    depths = network.depths
    less = tuple(max(1, depth - 1) for depth in depths)
    logits = torch.stack(network.forward_tree(images, [depths, less, (*depths[:-1], 1)]))
    logits.square().sum().backward()
    gradients = {f"gradient of {n}": p.grad for n, p in network.named_parameters() if p.grad is not None}
    return {"logits": logits.detach()} | gradients | dict(network.named_buffers())


def compare_step(network: StagedNetwork, fused: StagedNetwork, images: Tensor) -> None:
    """In float64."""
    results = [step(each, images) for each in (network, fused)]
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize(("bottleneck", "convolutions"), [(False, False), (True, False), (True, True)])
def test_a_fused_step_is_the_same(bottleneck: bool, convolutions: bool) -> None:
    network = tiny_resnet((2, 2), bottleneck=bottleneck)
    compare_step(*pair(network, convolutions=convolutions), tiny_images(3, 32))


@pytest.mark.parametrize(
    ("name", "fused", "norms"),
    [
        ("resnet18", 20, 20),
        ("resnet50", 53, 53),
        ("resnet50d", 55, 55),
        ("resnext50_32x4d", 53, 53),
        ("resnetaa50d", 55, 55),
        ("seresnet50", 1, 53),
        ("cifar_resnet20", 19, 19),
        ("mobilenetv3_large_100", 0, 46),
    ],
)
def test_what_is_fused(name: str, fused: int, norms: int) -> None:
    """All of a plain ResNet; of one with attention in its blocks the stem alone; of a MobileNetV3, whose
    batch norms hold their own activation, nothing; the names stay.
    """
    network = create_model(name, 5)
    keys = list(network.state_dict())
    parameters = list(network.parameters())
    assert fuse_batch_norms(network, "reference") == fused
    assert sum(isinstance(layer, FusedBatchNorm) for layer in batch_norms(network)) == fused
    assert len(batch_norms(network)) == norms
    assert list(network.state_dict()) == keys
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert fuse_batch_norms(network, "reference") == fused  # once more changes nothing
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "blocks", "fused"),
    [
        ("resnet50", 16, 36),
        ("resnet50d", 16, 36),
        ("resnext50_32x4d", 16, 36),
        ("resnetaa50d", 13, 27),  # not the three blocks that pool after their second batch norm
        ("seresnet50", 0, 0),
        ("resnet18", 0, 0),
        ("mobilenetv3_small_100", 0, 0),
    ],
)
def test_which_convolutions_are_fused(name: str, blocks: int, fused: int) -> None:
    """Those of plain bottlenecks and of their projections; the names stay."""
    network = create_model(name, 5)
    keys = list(network.state_dict())
    parameters = list(network.parameters())
    assert fuse_convolutions(network) == 0  # fused batch norms come first
    fuse_batch_norms(network, "reference")
    assert fuse_convolutions(network) == fused
    assert sum(isinstance(module, SharingBottleneck) for module in network.modules()) == blocks
    assert fuse_convolutions(network) == fused  # once more changes nothing
    assert list(network.state_dict()) == keys
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [
        ("resnet50d", False),
        ("resnet50d", True),
        ("resnetaa50d", True),
        ("seresnet50", False),
        ("cifar_resnet20", False),
    ],
)
def test_other_stems_and_blocks_compute_the_same(name: str, convolutions: bool) -> None:
    network, fused = pair(create_model(name, 5).double(), convolutions=convolutions)
    images = tiny_images(2, 64)
    torch.testing.assert_close(fused(images), network(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("convolutions", [False, True])
def test_evaluation_mode_and_parts_of_blocks(convolutions: bool) -> None:
    network, fused = pair(tiny_resnet((2, 2), bottleneck=True), convolutions=convolutions)
    images = tiny_images(2, 32)
    raw = tuple(
        BlockRef(ref.stage, ref.block, part) for ref, part in zip(network.full, [*Part] * 2, strict=False)
    )
    for _ in range(2):
        torch.testing.assert_close(
            fused.forward_tree(images, [raw])[0],
            network.forward_tree(images, [raw])[0],
            rtol=1e-10,
            atol=1e-10,
        )
        network.eval()
        fused.eval()


@pytest.mark.parametrize("convolutions", [False, True])
def test_statistics_of_subnets_are_estimated_as_before(convolutions: bool) -> None:
    """Re-estimation hooks the batch-norm layers, so a fused block must call them, each with its input."""
    results = []
    for network in pair(tiny_resnet((2, 3), bottleneck=True), convolutions=convolutions):
        subnets = [network.full, network.as_subnet((1, 2))]
        statistics = estimate_statistics(network, subnets, [tiny_images(4, 32)], FP32)
        batches = [(tiny_images(4, 32, seed=1), torch.arange(4))]
        results.append([each.loss for each in evaluate(network, subnets, batches, FP32, statistics)])
        results[-1] += sorted(moments.sum().item() for moments in statistics.sums.values())
    assert results[1] == pytest.approx(results[0], rel=1e-10)


def test_frozen_statistics_stay_with_fused_convolutions() -> None:
    network, fused = pair(tiny_resnet((1, 2), bottleneck=True), convolutions=True)
    before = {name: buffer.clone() for name, buffer in fused.named_buffers()}
    with frozen_statistics(network), frozen_statistics(fused):
        torch.testing.assert_close(fused(tiny_images(2, 32)), network(tiny_images(2, 32)))
    torch.testing.assert_close(dict(fused.named_buffers()), before, rtol=0, atol=0)


def test_a_batch_norm_in_evaluation_mode_keeps_its_block_plain() -> None:
    """Fine-tuning may freeze single layers."""
    network, fused = pair(tiny_resnet((2, 2), bottleneck=True), convolutions=True)
    for each in (network, fused):
        for frozen in ("layer1.0.bn1", "layer1.1.bn2", "layer2.0.bn3", "layer2.0.downsample.1"):
            each.get_submodule(frozen).eval()
    compare_step(network, fused, tiny_images(3, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_convolutions_follow_autocast(dtype: torch.dtype) -> None:
    """Also in a block whose input is float32, as a convolution does; float64 stays."""
    network, fused = pair(tiny_resnet((1, 1), bottleneck=True).float(), convolutions=True)
    block = fused.stages[1][0]
    assert isinstance(block.downsample, SharingProjection)
    x = torch.randn(4, 32, 8, 8)
    with torch.autocast("cpu", dtype):
        y, expected = block(x), network.stages[1][0](x)
        assert block.double()(x.double()).dtype == torch.float64
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected.float(), rtol=0.05, atol=0.05)


def test_triton_steps_are_as_accurate_as_plain_pytorch() -> None:
    """Logits, and all gradients and running statistics together, each relative to its largest value."""
    network = tiny_resnet((1, 2), bottleneck=True).float().to(memory_format=torch.channels_last)
    network, fused = pair(network, "triton", convolutions=True)
    exact = copy.deepcopy(network).double()
    images = tiny_images(4, 32)
    three = [step(fused, images.float()), step(network, images.float()), step(exact, images)]
    exactly = three[2]
    for kind in ("logits", "gradient", "running"):
        names = [name for name in exactly if kind in name]
        joined = [
            torch.cat([(each[name] / exactly[name].abs().max()).flatten() for name in names])
            for each in three
        ]
        Comparison(kind, joined[0].float(), *joined[1:]).check()
    counts = [name for name in exactly if "num_batches_tracked" in name]
    assert all(torch.equal(three[0][name], exactly[name]) for name in counts)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_copies_and_saved_weights_fit_the_plain_network(name: str) -> None:
    network, fused = pair(create_model(name, 5), convolutions=name == "resnet50")
    images = torch.randn(2, 3, 64, 64)
    again = copy.deepcopy(fused)
    torch.testing.assert_close(again(images), fused(images), rtol=0, atol=0)
    again(images)
    network.load_state_dict(again.state_dict())
    torch.testing.assert_close(again.eval()(images), network.eval()(images), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is Triton there")
def test_implementations_on_a_cpu() -> None:
    cpu, bf16 = torch.device("cpu"), Precision("bf16", "cpu")
    assert choose_kernels("auto", cpu) == "reference"
    assert choose_kernels("triton", cpu) == "triton"  # the tests' interpreter
    assert choose_batch_norm("auto", cpu, bf16, True) == "torch"
    assert choose_batch_norm("triton", cpu, bf16, True) == "triton"
    with pytest.raises(ConfigError, match=r"triton needs run\.channels_last"):
        choose_batch_norm("triton", cpu, bf16, False)
    with pytest.raises(ConfigError, match=r"apex needs a GPU and run\.precision fp16"):
        choose_batch_norm("apex", cpu, bf16, True)


def test_fused_convolutions_need_fused_batch_norms() -> None:
    for setting, batch_norm in (("torch", "apex"), ("triton", "triton"), ("reference", "reference")):
        assert choose_conv1x1(setting, batch_norm) == setting
    with pytest.raises(
        ConfigError, match=r"model.conv1x1 is 'triton'; allowed with batch norm torch: torch$"
    ):
        choose_conv1x1("triton", "torch")
    with pytest.raises(ConfigError, match=r"allowed with batch norm triton: torch, triton"):
        choose_conv1x1("reference", "triton")


def test_triton_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match=r"run\.kernels is 'triton'; allowed here: auto, reference"):
        choose_kernels("triton", cpu)
    with pytest.raises(ConfigError, match=r"model\.batch_norm is .triton.; allowed here: auto, torch"):
        choose_batch_norm("triton", cpu, FP32, True)


class GroupBatchNorm(nn.Module):
    """Behaves as apex's BatchNorm2d_NHWC: rows [N, H, W, C], the running statistics always updated."""

    def __init__(self, channels: int, fuse_relu: bool = False) -> None:
        super().__init__()
        self.fuse_relu = fuse_relu
        self.weight = self.bias = self.running_mean = self.running_var = None
        self.momentum = self.eps = 0.0
        self.minibatch_mean = self.minibatch_riv = torch.zeros(channels)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        assert x.is_contiguous()
        assert z is None or self.fuse_relu
        self.minibatch_mean.copy_(x.detach().mean((0, 1, 2)))
        y = nn.functional.batch_norm(
            x.permute(0, 3, 1, 2),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        ).permute(0, 2, 3, 1)
        y = y if z is None else y + z
        return y.relu() if self.fuse_relu else y


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of apex's name that behaves like its groupbn: the real one needs a GPU to be built."""
    modules: dict[str, Any] = {
        name: ModuleType(name) for name in ("apex", "apex.contrib", "apex.contrib.groupbn")
    }
    modules["apex.contrib.groupbn"].BatchNorm2d_NHWC = GroupBatchNorm
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("apex")
def test_apex_groupbn_fits_in() -> None:
    network, fused = pair(tiny_resnet((2, 2), bottleneck=True), "apex")
    assert "groupbn" not in "".join(fused.state_dict())
    compare_step(network, fused, tiny_images(3, 32))


def test_missing_apex_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"model.batch_norm is 'apex', but .* PyPI's 'apex' is unrelated"):
        fuse_batch_norms(create_model("resnet18", 5), "apex")


class Capped(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)


def test_what_somebody_changed_or_watches_stays() -> None:
    """A layer of another class, or one with hooks, is not replaced by a fused operation."""
    network = create_model("resnet18", 5).double().train()
    network.layer1[0].act1 = Capped()  # type: ignore[index, union-attr]
    seen: list[str] = []
    network.layer2[0].bn1.register_forward_hook(lambda *_: seen.append("bn"))  # type: ignore[index, union-attr]
    network.bn1.num_batches_tracked = None  # type: ignore[union-attr]
    fused = copy.deepcopy(network)
    seen.clear()
    assert (
        fuse_batch_norms(fused, "reference") == 20 - 2 - 3 - 1
    )  # two blocks, one with a projection; the stem
    images = tiny_images(2, 64)
    torch.testing.assert_close(fused(images), network(images), rtol=1e-9, atol=1e-9)
    assert seen == ["bn", "bn"]


def test_frozen_statistics_stay_frozen() -> None:
    network = create_model("resnet18", 5).train()
    with frozen_statistics(network):
        fuse_batch_norms(network, "reference")
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(torch.randn(2, 3, 64, 64))
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)


def test_implementations_are_known_and_not_mixed() -> None:
    network = create_model("resnet18", 5)
    with pytest.raises(ValueError, match="implementation is 'tritn'; allowed: triton, reference, apex"):
        fuse_batch_norms(network, "tritn")
    assert not any(isinstance(layer, FusedBatchNorm) for layer in batch_norms(network))
    fuse_batch_norms(network, "reference")
    with pytest.raises(ValueError, match="the network is fused by 'reference'"):
        fuse_batch_norms(network, "triton")
