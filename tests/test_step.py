"""One training step: the same in one pass or split, whatever the subnets' inputs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain import build
from fasttrain.config import Config, Data, Method, Optim, Run
from fasttrain.distributed import Process
from fasttrain.errors import ConfigError
from fasttrain.hardware import Precision, choose_precision
from fasttrain.models import StagedNetwork, batch_norms
from fasttrain.step import StepResult, TrainStep
from tests.networks import tiny_images, tiny_resnet
from tests.test_optim import IMPLEMENTATIONS

INPUTS: dict[str, dict[str, Any]] = {
    "full": {},
    "half": {"subnet_share": 0.5},
    "downscaled": {"subnet_inputs": "downscaled", "sizes": (24, 32), "sizes_per_step": 2},
    "cascaded": {"subnet_inputs": "cascaded", "sizes": (24, 32)},
    "none": {"start_epoch": 1},
}


def one_step(
    network: StagedNetwork, backward: str, options: dict[str, Any], accumulate: int = 1
) -> StepResult:
    """Train on one batch, without learning: the gradients stay in the momentum."""
    method = Method(subnets=3, normalize="layer_norm", kl_weight=0.7, backward=backward, **options)  # type: ignore[arg-type]
    config = Config(
        data=Data(crop=32, val_crop=32, val_resize=32),
        method=method,
        optim=Optim(lr=1e-9, weight_decay=0.0, momentum=0.9),
        run=Run(batch=4, epochs=2, accumulate=accumulate),
    )
    step = build.build_step(config, network, Process(0, 1, torch.device("cpu")), Precision("fp32", "cpu"), 2)
    small = [tiny_images(4, side, seed=side) for side in (24, 32)] if len(options) == 3 else []
    result = step(tiny_images(4, 32), small, torch.arange(4), epoch=0, step=0, global_step=0)
    state = step.optimizer.state
    network.gradients = [state[each]["momentum_buffer"] for each in network.parameters()]  # type: ignore[assignment]
    return result


@pytest.mark.parametrize("inputs", INPUTS)
def test_split_passes_have_the_joint_ones_gradients(inputs: str) -> None:
    joint = tiny_resnet((2, 3), bottleneck=True).train()
    split = copy.deepcopy(joint)
    first, second = (
        one_step(network, backward, INPUTS[inputs])
        for network, backward in ((joint, "joint"), (split, "split"))
    )
    for ours, theirs in zip(second.loss, first.loss, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert len(first.loss.subnets) == (0 if inputs == "none" else 3)
    gradients: list[tuple[Tensor, Tensor]] = list(zip(split.gradients, joint.gradients, strict=True))  # type: ignore[arg-type]
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        assert theirs.abs().max() > 0
    for ours, theirs in zip(split.buffers(), joint.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backward", ["joint", "split"])
@pytest.mark.parametrize("inputs", ["full", "downscaled", "none"])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(inputs: str, backward: str) -> None:
    """Three parts of 2, 1 and 1 images, where batch norm works by its running statistics."""
    whole = tiny_resnet((2, 3)).train()
    for layer in batch_norms(whole):
        layer.eval()
    parts = copy.deepcopy(whole)
    first = one_step(whole, backward, INPUTS[inputs])
    second = one_step(parts, backward, INPUTS[inputs], accumulate=3)
    for ours, theirs in zip(second.loss, first.loss, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    gradients: list[tuple[Tensor, Tensor]] = list(zip(parts.gradients, whole.gradients, strict=True))  # type: ignore[arg-type]
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        assert theirs.abs().max() > 0
    assert len(second.passes) == 3 * len(first.passes)


def build_plain_step(network: StagedNetwork, **optim: Any) -> TrainStep:
    """A step of common training on the CPU in the network's own precision."""
    config = Config(
        data=Data(crop=32, val_crop=32, val_resize=32),
        method=Method(name="common"),
        optim=Optim(lr=0.01, **optim),
        run=Run(batch=4, epochs=2),
    )
    return build.build_step(config, network, Process(0, 1, torch.device("cpu")), Precision("fp32", "cpu"), 4)


def train_plainly(step: TrainStep, start: int, end: int) -> None:
    for index in range(start, end):
        images = tiny_images(4, 32, seed=index)
        step(images, [], torch.arange(4), epoch=0, step=index, global_step=index)


@pytest.mark.parametrize("groups", [{}, {"decay_on": "matrices", "layer_decay": 0.7}], ids=["one", "many"])
@pytest.mark.parametrize(("name", "impl"), IMPLEMENTATIONS)
def test_every_optimizer_goes_on_to_the_bit(
    name: str, impl: str, groups: dict[str, Any], tmp_path: Path
) -> None:
    """From what a checkpoint's file gives back, in the middle of an epoch."""
    options = {"name": name, "impl": impl, "clip": 1.0, "warmup_epochs": 1, "warmup_lr": 1e-4, **groups}
    whole = tiny_resnet((2, 2)).train()
    step = build_plain_step(whole, **options)
    train_plainly(step, 0, 2)
    torch.save([whole.state_dict(), step.optimizer.state_dict()], tmp_path / "state.pt")
    train_plainly(step, 2, 5)

    resumed = tiny_resnet((2, 2), seed=1).train()
    again = build_plain_step(resumed, **options)
    weights, moments = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(weights)
    again.optimizer.load_state_dict(moments)
    train_plainly(again, 2, 5)
    for ours, theirs in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_layers_learn_at_their_own_rates() -> None:
    """The schedule's rate times layer_decay^(layers above), in the groups and in what a step changes."""
    network = tiny_resnet((1, 1)).train()
    step = build_plain_step(network, name="adamw", layer_decay=0.5, warmup_epochs=1)
    before = {name: each.detach().clone() for name, each in network.named_parameters()}
    train_plainly(step, 0, 1)
    rates = sorted({group["lr"] for group in step.optimizer.param_groups})
    assert rates == pytest.approx([0.01 / 4 * 0.5**above for above in (3, 2, 1, 0)])
    # Adam's first step is the learning rate in every element that has a gradient
    moved = {
        name: float((each.detach() - before[name]).abs().max()) for name, each in network.named_parameters()
    }
    assert moved["fc.bias"] == pytest.approx(0.0025, rel=0.01)
    assert moved["layer2.0.conv1.weight"] == pytest.approx(0.00125, rel=0.01)
    assert moved["conv1.weight"] == pytest.approx(0.0025 / 8, rel=0.01)


@pytest.mark.parametrize("name", ["common", "stimulative"])
def test_a_step_has_the_main_loss_that_is_asked_for(name: Literal["common", "stimulative"]) -> None:
    method = Method(name=name, main_loss="bce", target_threshold=0.3, label_smoothing=0.5)
    config = Config(data=Data(crop=32, val_crop=32, val_resize=32), method=method, run=Run(batch=4))
    network, cpu = tiny_resnet((2, 2)).train(), torch.device("cpu")
    logits, targets = copy.deepcopy(network)(tiny_images(4, 32)), torch.arange(4)
    step = build.build_step(config, network, Process(0, 1, cpu), Precision("fp32", "cpu"), 4)
    result = step(tiny_images(4, 32), [], targets, epoch=0, step=0, global_step=0)
    one_hot = F.one_hot(targets, 7).double()  # 0.57 and 0.07 after the smoothing
    expected = F.binary_cross_entropy_with_logits(logits, one_hot)
    torch.testing.assert_close(result.loss.main, expected.detach())
    assert build.loss_kernels(config, cpu) == "reference"
    with pytest.raises(ConfigError, match=r"'triton' with method\.main_loss 'bce'; allowed: auto, reference"):
        build.loss_kernels(replace(config, run=Run(kernels="triton")), cpu)
    with pytest.raises(ConfigError, match=r"method\.target_threshold is 0\.3; allowed: 0 with main_loss ce"):
        Method(target_threshold=0.3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU has nothing to wait for")
@pytest.mark.parametrize("backward", ["joint", "split"])
def test_the_host_never_waits_for_the_gpu(backward: str) -> None:
    """From the second step on: the first compiles kernels and tries them."""
    device = torch.device("cuda", 0)
    method = Method(subnets=3, normalize="layer_norm", backward=backward)  # type: ignore[arg-type]
    data = Data(crop=64, val_crop=64, val_resize=64, mixup=0.2, cutmix=1.0)
    config = Config(data=data, method=method, run=Run(batch=4, epochs=2))
    network = build.build_network(config, 7, device).train()
    precision = choose_precision("auto", device)
    step = build.build_step(config, network, Process(0, 1, device), precision, 4)
    images = tiny_images(4, 64).float().to(device).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(4, device=device)
    for index in range(3):
        torch.cuda.set_sync_debug_mode("error" if index else "default")
        try:
            step(images, [], targets, epoch=0, step=index, global_step=index)
        finally:
            torch.cuda.set_sync_debug_mode("default")
