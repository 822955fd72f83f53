"""One training step: one forward pass of the main network and its subnets, one loss, one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .hardware import Precision
from .kernels.normalized_loss import StimulativeLoss
from .methods import Method
from .optim import CosineSchedule


class StepResult(NamedTuple):
    """What a step tells; its tensors stay on the device, so that nobody waits for them."""

    loss: StimulativeLoss
    lr: float


@dataclass(slots=True)
class TrainStep:
    """Everything that a step changes: weights, optimizer, loss scale, weight average.

    Attributes:
        forward: `TreeForward` of the network, in DDP or not.
        method: plans the forward pass and computes the loss.
        optimizer: over the network's parameters.
        schedule: learning rate per global step.
        precision: of forward and backward.
        scaler: of the loss; does something in fp16 alone.
        clip: largest gradient norm; 0: none.
        ema: weight average or None.
    """

    forward: nn.Module
    method: Method
    optimizer: torch.optim.Optimizer
    schedule: CosineSchedule
    precision: Precision
    scaler: torch.amp.GradScaler
    clip: float = 0.0
    ema: AveragedModel | None = None

    def __call__(
        self,
        images: Tensor,
        small: Sequence[Tensor],
        targets: Tensor,
        *,
        epoch: int,
        step: int,
        global_step: int,
    ) -> StepResult:
        """Train on one batch.

        Args:
            images: full-size batch [B, 3, H, W], normalized.
            small: downscaled batches [B, 3, h, h] for the subnets.
            targets: class indices, int64 [B].
            epoch: counted from 0.
            step: within the epoch.
            global_step: within the run.
        """
        lr = self._set_learning_rate(global_step)
        plan = self.method.plan(images, small, epoch=epoch, step=step)
        with self.precision.autocast():
            logits = self.forward(plan.inputs, plan.trees)
        loss = self.method.loss(logits, plan, targets)
        self.scaler.scale(loss.total).backward()
        self._update()
        return StepResult(loss._replace(total=loss.total.detach()), lr)

    def _set_learning_rate(self, global_step: int) -> float:
        lr = self.schedule(global_step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _update(self) -> None:
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.forward.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(_unwrap(self.forward))


def _unwrap(forward: nn.Module) -> nn.Module:
    module = forward.module if isinstance(forward, nn.parallel.DistributedDataParallel) else forward
    return module.network  # type: ignore[return-value]
