"""Networks in training, as the measured steps find them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fasttrain.config import Optim
from fasttrain.errors import NonFiniteError
from fasttrain.hardware import Precision
from fasttrain.models import TreeForward, fuse_batch_norms
from fasttrain.optim import CosineSchedule, build_optimizer
from fasttrain.step import TrainStep
from fasttrain.subnets import Draw

from . import measure
from .modes import Batch, Mode, Timm
from .variants import Variant


class Trainee:
    """A network in training with its optimizer, executed in one way."""

    def __init__(self, network: nn.Module, mode: Mode, device: torch.device) -> None:
        """Take a network over, for modes that are executed like `mode`."""
        self.device, variant = device, mode.variant
        format_ = torch.channels_last if variant.channels_last else torch.contiguous_format
        self.network = network.to(device, memory_format=format_).train()  # type: ignore[call-overload]
        if variant.batch_norm != "torch":
            fuse_batch_norms(self.network, variant.batch_norm)
        _compile(self.network, variant.compile)
        forward = self.network if isinstance(mode, Timm) else TreeForward(self.network)
        self.step = train_step(forward, mode, device, variant.precision)

    def train(self, mode: Mode, batch: Batch, draw: Draw) -> Tensor:
        """One training step; the loss, detached."""
        loss = mode.backward(self.step, batch, draw)
        self.step.update()
        return loss

    def timed(self, mode: Mode, batch: Batch, draw: Draw) -> float:
        """Seconds of one step.

        Raises:
            NonFiniteError: a loss that is not finite, on which no timing can be trusted.
        """
        losses: list[Tensor] = []
        measure.use_backends(benchmark=mode.variant.tuned)
        elapsed = measure.seconds(self.device, lambda: losses.append(self.train(mode, batch, draw)))
        if not math.isfinite(losses[0].item()):
            raise NonFiniteError(f"mode {mode.name}: the loss is {losses[0].item()}")
        return elapsed

    def state(self) -> list[Tensor]:
        """What lives between two steps: weights, buffers, momentum."""
        momentum = [
            value
            for entry in self.step.optimizer.state.values()
            for value in entry.values()
            if isinstance(value, Tensor)
        ]
        return [*self.network.parameters(), *self.network.buffers(), *momentum]


def train_step(forward: nn.Module, mode: Mode, device: torch.device, precision: str) -> TrainStep:
    """What the modes' steps share: optimizer, precision, loss scale; each brings its own method."""
    return TrainStep(
        forward=forward,
        method=mode.common,
        optimizer=build_optimizer(forward.parameters(), Optim(lr=0.01), device),
        schedule=CosineSchedule(0.01, 0.01, 0, 1),
        precision=Precision(precision, device.type),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
    )


def _compile(network: nn.Module, what: str) -> None:
    """Hand a network's blocks, or all of it, to torch.compile, which starts at the first step."""
    if what == "whole":
        network.compile()
    elif what == "block":
        for stage in network.stages:  # type: ignore[union-attr]
            for block in stage:
                block.compile()


def trainee_key(mode: Mode) -> tuple[bool, Variant]:
    """Modes of equal keys may train the same network."""
    return isinstance(mode, Timm), mode.variant
