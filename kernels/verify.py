"""Whether the Triton kernels can be trusted on a device: each compared with its reference once per process.

A driver, compiler or GPU that nobody has tried fails here, in seconds, and not in a night's training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from .batchnorm_act import batch_norm_act
from .batchnorm_act_pool import batch_norm_act_pool
from .normalized_loss import stimulative_loss
from .runtime import Kernels

_TOLERANCE = 1e-3  # of the largest value, in float32: far above rounding, far below a wrong result
_ROUNDS = 3  # what one launch leaves behind must not disturb the next


@cache
def fault(device: torch.device) -> str:
    """What is wrong with the kernels of the loss and of batch norm on a device; empty if nothing is."""
    try:
        for _ in range(_ROUNDS):
            for operation in (_loss, _batch_norm, _batch_norm_pool):
                ours, expected = (list(operation(device, kernels)) for kernels in ("triton", "reference"))
                for own, right in zip(ours, expected, strict=True):
                    if not (own - right).abs().max() <= _TOLERANCE * right.abs().max():
                        return f"{operation.__name__.strip('_')} computes something else than its reference"
    except Exception as error:  # whatever it is, the references work
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return ""


def _random(device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator).to(device)


def _loss(device: torch.device, kernels: Kernels) -> Iterator[Tensor]:
    random = _random(device)
    logits = [random(33, 1000).requires_grad_() for _ in range(3)]
    targets = torch.arange(33, device=device)
    loss = stimulative_loss(logits[0], logits[1:], targets, weights=[1.0, 0.5], kernels=kernels)
    yield from (loss.total.detach(), loss.main, loss.subnets)
    yield from torch.autograd.grad(loss.total, logits)


def _batch_norm(device: torch.device, kernels: Kernels) -> Iterator[Tensor]:
    random = _random(device)
    tensors = _activation(random), random(64).requires_grad_(), random(64).requires_grad_()
    running, residual = (random(64), random(64).abs()), _activation(random)
    y = batch_norm_act(*tensors, *running, residual, training=True, groups=2, kernels=kernels)
    yield from (y.detach(), *running)
    yield from torch.autograd.grad(y, [*tensors, residual], _activation(random).detach())


def _batch_norm_pool(device: torch.device, kernels: Kernels) -> Iterator[Tensor]:
    random = _random(device)
    tensors = _activation(random), random(64).requires_grad_(), random(64).requires_grad_()
    y = batch_norm_act_pool(*tensors, None, None, training=True, kernels=kernels)
    yield y.detach()
    yield from torch.autograd.grad(y, tensors, random(*y.shape))


def _activation(random: Callable[..., Tensor]) -> Tensor:
    return random(4, 64, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
