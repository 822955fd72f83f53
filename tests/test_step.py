"""One training step: the same in one pass or split, whatever the subnets' inputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain import build
from fasttrain.config import Config, Data, Method, Optim, Run
from fasttrain.distributed import Process
from fasttrain.hardware import Precision
from fasttrain.models import StagedNetwork
from fasttrain.step import StepResult
from tests.networks import tiny_images, tiny_resnet

INPUTS: dict[str, dict[str, Any]] = {
    "full": {},
    "downscaled": {"subnet_inputs": "downscaled", "sizes": (24, 32), "sizes_per_step": 2},
    "cascaded": {"subnet_inputs": "cascaded", "sizes": (24, 32)},
    "none": {"start_epoch": 1},
}


def one_step(network: StagedNetwork, backward: str, options: dict[str, Any]) -> StepResult:
    """Train on one batch, without learning: the gradients stay in the momentum."""
    method = Method(subnets=3, normalize="layer_norm", kl_weight=0.7, backward=backward, **options)  # type: ignore[arg-type]
    config = Config(
        data=Data(crop=32, val_crop=32, val_resize=32),
        method=method,
        optim=Optim(lr=1e-9, weight_decay=0.0, momentum=0.9),
        run=Run(batch=4, epochs=2),
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
