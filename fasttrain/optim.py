"""Optimizer, learning-rate schedule and weight averaging."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .config import Optim


def build_optimizer(
    parameters: Iterable[nn.Parameter], optim: Optim, device: torch.device
) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on every parameter, as the published code has it."""
    fused = optim.impl == "fused" or (optim.impl == "auto" and device.type == "cuda")
    return torch.optim.SGD(
        parameters,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.momentum > 0,
        fused=fused,
        foreach=None if fused else True,
    )


def build_ema(network: nn.Module, decay: float) -> AveragedModel | None:
    """The exponential moving average of weights and batch-norm statistics; None with decay 0."""
    if decay == 0:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """Learning rate per step: linear warm-up, then cosine to zero (Loshchilov and Hutter 2017), clamped.

    Attributes:
        peak: learning rate after the warm-up.
        floor: least learning rate after the warm-up.
        warmup: steps of warm-up.
        total: steps of the whole run.
    """

    peak: float
    floor: float
    warmup: int
    total: int

    def __call__(self, step: int) -> float:
        """The learning rate of a step, counted from 0 over the whole run."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        return max(self.floor, 0.5 * self.peak * (1 + math.cos(math.pi * min(1.0, progress))))


def build_schedule(optim: Optim, epochs: int, steps_per_epoch: int) -> CosineSchedule:
    """The schedule of a run."""
    return CosineSchedule(
        peak=optim.lr,
        floor=optim.min_lr,
        warmup=round(optim.warmup_epochs * steps_per_epoch),
        total=epochs * steps_per_epoch,
    )
