"""Optimizer, learning-rate schedule and weight averaging."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import nvidia_apex
from .config import Optim
from .errors import ConfigError


def build_optimizer(
    parameters: Iterable[nn.Parameter], optim: Optim, device: torch.device
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; weight decay on every parameter, as the published code has it.

    Raises:
        ConfigError: `optim.impl` is apex, but it is missing, or the device is no GPU.
    """
    impl = choose_impl(optim.impl, device)
    options = {
        "lr": optim.lr,
        "momentum": optim.momentum,
        "weight_decay": optim.weight_decay,
        "nesterov": optim.momentum > 0,
    }
    if impl == "apex":
        fused_sgd = nvidia_apex.load("optim.impl", "apex.optimizers", "FusedSGD")
        return fused_sgd(list(parameters), set_grad_none=True, **options)
    fused = impl == "fused"
    return torch.optim.SGD(parameters, fused=fused, foreach=None if fused else True, **options)  # type: ignore[arg-type]


def choose_impl(setting: str, device: torch.device) -> str:
    """The implementation of SGD on a device: fused, foreach or apex.

    Raises:
        ConfigError: apex without a GPU.
    """
    if setting == "apex" and device.type != "cuda":
        raise ConfigError("optim.impl is 'apex'; allowed here: auto, fused, foreach (apex needs a GPU)")
    return {"auto": "fused" if device.type == "cuda" else "foreach"}.get(setting, setting)


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
