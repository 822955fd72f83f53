"""Whether gradients stay finite: decided on the device, told to the host a step late, so that nobody waits.

Gradients are averaged over the processes before they are looked at, so that all processes see the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together, a float32 scalar on their device."""
    gradients = [each.grad for each in parameters if each.grad is not None]
    return nn.utils.get_total_norm(gradients).float()


def guarded_step(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """The optimizer's step, left out if the gradients' norm is not finite.

    A fused optimizer looks at a flag on the device; any other makes the host wait for the norm: by then the
    backward pass is done, and what a wait costs is the first launches of the step, not a copy of all moments.
    """
    if optimizer.param_groups[0].get("fused"):
        optimizer.found_inf = norm.isfinite().logical_not().float()  # type: ignore[attr-defined]
        optimizer.step()
    elif math.isfinite(norm.item()):
        optimizer.step()


OVERFLOWS = 24
"""Halvings of fp16's loss scale in a row that bring it from 2^16, doubled some times, below 1: what overflows
then is not the scale's fault."""


class LateCheck:
    """Reads each step's gradient norm after the next step has been queued.

    Attributes:
        skipped: updates left out so far because they were not finite.
    """

    def __init__(self, allowed: int = 0, overflows: int = 0) -> None:
        """Nothing to read yet.

        Args:
            allowed: how many updates in a row may be left out; one more ends the run.
            overflows: how many before them in a row are no faults: the loss scale answers them (`OVERFLOWS`).
        """
        self.allowed, self.overflows, self.skipped = allowed, overflows, 0
        self._in_a_row = 0
        self._pending: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def follow(self, norm: Tensor, step: int) -> None:
        """Start to bring a step's norm to the host, and judge the step before it.

        Raises:
            NonFiniteError: the step before was not finite.
        """
        host, event = norm, None
        if norm.is_cuda:
            host = torch.empty((), dtype=norm.dtype, pin_memory=True).copy_(norm, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        before, self._pending = self._pending, (step, host, event)
        self._judge(before)

    def settle(self) -> None:
        """Judge the last step, too.

        Raises:
            NonFiniteError: it was not finite.
        """
        before, self._pending = self._pending, None
        self._judge(before)

    def _judge(self, pending: tuple[int, Tensor, torch.cuda.Event | None] | None) -> None:
        if pending is None:
            return
        step, norm, event = pending
        if event is not None:
            event.synchronize()  # the next step is queued behind it: the device does not run dry
        if math.isfinite(norm.item()):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row <= self.overflows:
            return
        self.skipped += 1
        if self._in_a_row > self.overflows + self.allowed:
            row = f" ({self._in_a_row} in a row)" if self._in_a_row > 1 else ""
            raise NonFiniteError(
                f"the gradient's norm became {norm.item()} at step {step + 1}{row}, whose update was left "
                "out; checkpoints, if there are, are from before. A lower --optim.lr, more "
                "--optim.warmup-epochs, or --optim.clip may help"
            )


class StatisticsGuard:
    """Takes back a step's change of buffers (batch norm's running statistics) if the step was not finite."""

    def __init__(self, module: nn.Module) -> None:
        """Guard a module's floating-point buffers."""
        self.module = module
        self._kept: Tensor | None = None

    def keep(self) -> None:
        """Remember the buffers before a step."""
        buffers = self._buffers()
        self._kept = _flat(buffers) if buffers else None

    def take_back(self, norm: Tensor) -> None:
        """Decide on the device by the gradients' norm: nobody waits."""
        if self._kept is None:
            return
        buffers = self._buffers()
        right = torch.where(norm.isfinite(), _flat(buffers), self._kept)
        parts = right.split([each.numel() for each in buffers])
        torch._foreach_copy_(buffers, [part.view_as(each) for part, each in zip(parts, buffers, strict=True)])
        self._kept = None

    def _buffers(self) -> list[Tensor]:
        return [each for each in self.module.buffers() if each.is_floating_point()]


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """One copy of all values: a few launches, however many tensors."""
    return torch.cat([each.flatten() for each in tensors])
