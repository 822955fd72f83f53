"""Ten training steps with both kernels and with the references: the losses agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.accuracy import Comparison
from fasttrain.kernels.normalized_loss import stimulative_loss
from fasttrain.models import FusedBatchNorm, StagedNetwork, batch_norms, create_model, fuse_batch_norms
from tests.networks import tiny_resnet

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def losses(network: StagedNetwork, kernels: Any, dtype: torch.dtype, steps: int) -> Tensor:
    """Total loss of each of some steps of ST++ with two subnets, on images that are the same in any dtype."""
    network = network.to(device=DEVICE, dtype=dtype, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    fuse_batch_norms(network, kernels)
    assert all(isinstance(layer, FusedBatchNorm) for layer in batch_norms(network))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    less = tuple(max(1, depth - 1) for depth in network.depths)
    result = []
    for step in range(steps):
        random = torch.Generator().manual_seed(step)
        images = torch.randn(4, 3, 32, 32, generator=random).to(DEVICE, dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        targets = torch.randint(7, (4,), generator=random).to(DEVICE)
        main, *subnets = network.forward_tree(images, [network.depths, less, (*less[:-1], 1)])
        loss = stimulative_loss(main, subnets, targets, weights=[1.0, 0.5], kernels=kernels)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        result.append(loss.total.detach())
    return torch.stack(result)


def compare(create: Any, steps: int) -> Comparison:
    settings = (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64))
    return Comparison("losses", *(losses(create(), kernels, dtype, steps) for kernels, dtype in settings))


def test_ten_steps_of_a_small_network() -> None:
    compare(lambda: tiny_resnet((1, 2), bottleneck=True), 10).check()


@pytest.mark.heavy
def test_ten_steps_of_resnet50() -> None:
    """By the interpreter on a CPU: about ten minutes."""

    def create() -> StagedNetwork:
        torch.manual_seed(0)
        return create_model("resnet50", 7)

    compare(create, 10).check()
