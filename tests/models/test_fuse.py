"""Fused batch norms: the same network under the same names, whatever it is asked to do."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fasttrain.errors import ConfigError
from fasttrain.evaluation import estimate_statistics, evaluate
from fasttrain.hardware import Precision, choose_batch_norm, choose_kernels
from fasttrain.models import (
    FusedBatchNorm,
    StagedNetwork,
    batch_norms,
    create_model,
    fuse_batch_norms,
)
from fasttrain.subnets import BlockRef, Part
from tests.networks import tiny_images, tiny_resnet

FP32 = Precision("fp32", "cpu")


def pair(network: StagedNetwork, implementation: str = "reference") -> tuple[StagedNetwork, StagedNetwork]:
    """A network and its fused copy, in training mode."""
    for layer in batch_norms(network):
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.uniform_(layer.bias, -0.5, 0.5)
    fused = copy.deepcopy(network)
    fuse_batch_norms(fused, implementation)
    return network.train(), fused.train()


def compare_step(network: StagedNetwork, fused: StagedNetwork, images: Tensor) -> None:
    """Logits of the main network and of two subnets, gradients and running statistics, in float64."""
    depths = network.depths
    less = tuple(max(1, depth - 1) for depth in depths)
    results: list[dict[str, Tensor]] = []
    for each in (network, fused):
        logits = torch.stack(each.forward_tree(images, [depths, less, (*depths[:-1], 1)]))
        logits.square().sum().backward()
        gradients = {f"gradient of {n}": p.grad for n, p in each.named_parameters() if p.grad is not None}
        results.append({"logits": logits.detach()} | gradients | dict(each.named_buffers()))
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_fused_step_is_the_same(bottleneck: bool) -> None:
    compare_step(*pair(tiny_resnet((2, 2), bottleneck=bottleneck)), tiny_images(3, 32))


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
    ],
)
def test_what_is_fused(name: str, fused: int, norms: int) -> None:
    """All of a plain ResNet; of one with attention in its blocks the stem alone; the names stay."""
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


@pytest.mark.parametrize("name", ["resnet50d", "seresnet50", "cifar_resnet20"])
def test_other_stems_and_blocks_compute_the_same(name: str) -> None:
    network, fused = pair(create_model(name, 5).double())
    images = tiny_images(2, 64)
    torch.testing.assert_close(fused(images), network(images), rtol=1e-9, atol=1e-9)


def test_evaluation_mode_and_parts_of_blocks() -> None:
    network, fused = pair(tiny_resnet((2, 2), bottleneck=True))
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


def test_statistics_of_subnets_are_estimated_as_before() -> None:
    """Re-estimation hooks the batch-norm layers, so a fused block must call them."""
    results = []
    for network in pair(tiny_resnet((2, 3), bottleneck=True)):
        subnets = [network.full, network.as_subnet((1, 2))]
        statistics = estimate_statistics(network, subnets, [tiny_images(4, 32)], FP32)
        batches = [(tiny_images(4, 32, seed=1), torch.arange(4))]
        results.append([each.loss for each in evaluate(network, subnets, batches, FP32, statistics)])
    assert results[1] == pytest.approx(results[0], rel=1e-10)


def test_copies_and_saved_weights_fit_the_plain_network() -> None:
    network, fused = pair(create_model("resnet18", 5))
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
