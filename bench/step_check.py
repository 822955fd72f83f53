"""Whether a training step on a device computes what float64 does on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from fasttrain.models import StagedNetwork, create_model

from .accuracy import Comparison
from .case import Check
from .modes import Setup, build_mode
from .trainee import Trainee

MODES = ("ct", "st", "stpp-r1", "stpp-rk", "stpp-split")
_SETUP = Setup(subnets=3, space="default", crop=64, sizes=(32, 48), seed=0)
_MODEL, _CLASSES, _BATCH = "resnet18", 10, 8
_DRAWS = 3


def checks(device: torch.device) -> list[Check]:
    """One per mode: its losses and gradients over some draws, executed as the trainer would on the device."""
    return [Check(mode, partial(compare, mode, device)) for mode in MODES]


def compare(name: str, device: torch.device) -> Iterable[Comparison]:
    """In float32 without TF32, against plain PyTorch on the device and float64 on the CPU.

    The gradients of a draw count as one number, the norm of their error over the norm of all: where single
    ReLUs fall on the other side, single gradients say little.
    """
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        cpu = torch.device("cpu")
        ours = run(name, device, torch.float32)
        native = run(f"{name}:plain", device, torch.float32)
        exact = run(f"{name}:plain", cpu, torch.float64)
    finally:
        torch.backends.cudnn.conv.fp32_precision = before[0]  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = before[1]
    losses = [torch.stack([loss for loss, _ in results]) for results in (ours, native, exact)]
    yield Comparison("loss", *losses)
    yield Comparison(
        "error of the gradients",
        _errors(ours, exact),
        _errors(native, exact),
        torch.zeros(1, dtype=torch.float64),
    )


def run(name: str, device: torch.device, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Loss and all gradients of each of some draws, without learning, on the CPU."""
    torch.manual_seed(0)
    network: StagedNetwork = create_model(_MODEL, _CLASSES).to(dtype)
    mode = build_mode(name, _SETUP, network, device, "fp32")
    trainee = Trainee(network, mode, device)
    random = torch.Generator().manual_seed(1)
    results = []
    for step in range(_DRAWS):
        images = torch.randn(_BATCH, 3, _SETUP.crop, _SETUP.crop, generator=random).to(device, dtype)
        targets = torch.randint(_CLASSES, (_BATCH,), generator=random).to(device)
        draw = mode.draw(step)
        images = images.contiguous(memory_format=torch.channels_last)
        loss = mode.backward(trainee.step, mode.batch(images, targets, draw), draw)
        gradients = [each.grad.flatten() for each in network.parameters() if each.grad is not None]
        results.append((loss.cpu(), torch.cat(gradients).cpu()))
        network.zero_grad()
    return results


def _errors(results: list[tuple[Tensor, Tensor]], exact: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean over the draws, [1]."""
    relative = [
        (own.double() - right).norm() / right.norm()
        for (_, own), (_, right) in zip(results, exact, strict=True)
    ]
    return torch.stack(relative).mean()[None].float()
