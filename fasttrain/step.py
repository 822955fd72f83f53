"""One training step: one forward pass of the main network and its subnets, one loss, one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .guards.finite import LateCheck, StatisticsGuard, gradient_norm, guarded_step
from .hardware import Precision
from .kernels.normalized_loss import StimulativeLoss
from .methods import Method, Pass, Plan
from .mixing import Mixing
from .models import Auxiliary, TreeForward, frozen_statistics
from .optim import CosineSchedule


class StepResult(NamedTuple):
    """What a step tells; its tensors stay on the device, so that nobody waits for them.

    Attributes:
        loss: detached.
        lr: learning rate, before layer-wise decay.
        gradient_norm: L2 norm of all gradients before any clipping, float32 scalar.
        passes: what ran.
    """

    loss: StimulativeLoss
    lr: float
    gradient_norm: Tensor
    passes: tuple[Pass, ...]


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
        mixing: of images and targets before all else, or None.
        reduce: averages the gradients over the processes after a step in parts (`method.backward` split);
            None: one backward pass, in which DDP does it.
        check: finds out that gradients are not finite, a step late; `check.settle()` at once.
        accumulate: parts that a batch is trained in, one after the other.
        guard: of the running statistics, where updates that are not finite may be left out (in fp16 always);
            or None.
    """

    forward: nn.Module
    method: Method
    optimizer: torch.optim.Optimizer
    schedule: CosineSchedule
    precision: Precision
    scaler: torch.amp.GradScaler
    clip: float = 0.0
    ema: AveragedModel | None = None
    mixing: Mixing | None = None
    reduce: Callable[[Iterable[nn.Parameter]], None] | None = None
    check: LateCheck = field(default_factory=LateCheck)
    accumulate: int = 1
    guard: StatisticsGuard | None = None

    @property
    def auxiliary(self) -> Auxiliary | None:
        """What the method trains besides the network, where there is something."""
        return _unwrap(self.forward).auxiliary

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

        Raises:
            NonFiniteError: the gradients of the step before were not finite; they changed no weight.
        """
        lr = self._set_learning_rate(global_step)
        if self.mixing is not None:
            images, small, targets = self.mixing(images, small, targets, epoch=epoch, step=step)
        if self.guard is not None:
            self.guard.keep()
        loss, passes = self._accumulate(images, small, targets, epoch, step)
        norm = self.update()
        self.check.follow(norm, global_step)
        return StepResult(loss, lr, norm, passes)

    def _accumulate(
        self, images: Tensor, small: Sequence[Tensor], targets: Tensor, epoch: int, step: int
    ) -> tuple[StimulativeLoss, tuple[Pass, ...]]:
        """Gradients of a batch, part by part; its loss, detached, and what ran."""
        losses: list[StimulativeLoss] = []
        shares: list[float] = []
        passes: tuple[Pass, ...] = ()
        for index, part in enumerate(self._parts(images, small, targets)):
            plan = self.method.plan(part.images, part.small, epoch=epoch, step=step, part=index)
            with nullcontext() if part.last else self._unreduced():
                losses.append(self.backward(plan, part.targets, part.share, last=part.last))
            shares.append(part.share)
            passes += plan.passes
        return (losses[0] if len(losses) == 1 else _average(losses, shares)), passes

    def _parts(self, images: Tensor, small: Sequence[Tensor], targets: Tensor) -> Iterator[_Part]:
        """The batch in `accumulate` parts, or one part for each image if it has fewer."""
        count = min(self.accumulate, len(targets))
        cuts = [each.tensor_split(count) for each in (images, *small, targets)]
        for index, (image, *smaller, target) in enumerate(zip(*cuts, strict=True)):
            share = len(target) / len(targets)
            yield _Part(image, smaller, target, share, index == count - 1)

    def _unreduced(self) -> AbstractContextManager[None]:
        """DDP leaves the gradients on their process."""
        ddp = self.forward
        return ddp.no_sync() if isinstance(ddp, nn.parallel.DistributedDataParallel) else nullcontext()

    def backward(
        self, plan: Plan, targets: Tensor, share: float = 1.0, *, last: bool = True
    ) -> StimulativeLoss:
        """Forward and backward pass of a plan; the gradients stay in `.grad`, the loss comes detached.

        Args:
            plan: of a batch, or of a part of it.
            targets: of the same images.
            share: weight of the part's gradients: its share of the batch.
            last: whether no part follows, so that the processes' gradients are averaged.
        """
        if self.reduce is None:
            return self._joint(plan, targets, share)
        loss = self._split(plan, targets, share)
        if last:
            self.reduce(self.forward.parameters())
        return loss

    def _joint(self, plan: Plan, targets: Tensor, share: float) -> StimulativeLoss:
        """One forward and one backward pass; the loss, detached."""
        with self.precision.autocast():
            logits = self.forward(plan.inputs, plan.trees, plan.drops)
        return self._backward(logits, plan, targets, share)

    def _split(self, plan: Plan, targets: Tensor, share: float) -> StimulativeLoss:
        """A forward and a backward pass for each tree; the sum of their losses, detached."""
        main, *rest = plan.parts()
        with self.precision.autocast():
            logits = self.forward(main.inputs, main.trees, main.drops)
        teacher = logits[0][0].detach()
        losses = [self._backward(logits, main, targets, share)]
        del logits
        for part in rest:
            with frozen_statistics(self.forward), self.precision.autocast():
                (own,) = self.forward(part.inputs, part.trees, part.drops)
            losses.append(self._backward([[teacher], own], part, targets, share))
        return _sum(losses, plan)

    def _backward(
        self, logits: Sequence[Sequence[Tensor]], plan: Plan, targets: Tensor, share: float
    ) -> StimulativeLoss:
        loss = self.method.loss(logits, plan, targets)
        self.scaler.scale(loss.total if share == 1 else share * loss.total).backward()
        return loss._replace(total=loss.total.detach())

    def _set_learning_rate(self, global_step: int) -> float:
        lr = self.schedule(global_step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr

    def update(self) -> Tensor:
        """Change the weights and their average by the gradients, which are then gone.

        Gradients that are not finite change no weight, moment or count of the optimizer. The schedule and the
        average, whose decay is per step, go on over such a step; the weights in the average are as they were.

        Returns:
            The gradients' norm before any clipping, float32 scalar.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = list(self.forward.parameters())
        norm = gradient_norm(parameters)
        if self.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            guarded_step(self.optimizer, norm)
        self.optimizer.zero_grad()
        if self.guard is not None:
            self.guard.take_back(norm)
        if self.ema is not None:
            self.ema.update_parameters(_unwrap(self.forward).network)
        return norm


class _Part(NamedTuple):
    """A part of a batch: its tensors, its share of the images, and whether it is the last."""

    images: Tensor
    small: Sequence[Tensor]
    targets: Tensor
    share: float
    last: bool


def _average(losses: Sequence[StimulativeLoss], shares: Sequence[float]) -> StimulativeLoss:
    """The loss of a batch from those of its parts: means by their shares; hits add up."""

    def mean(parts: Iterable[Tensor]) -> Tensor:
        return torch.stack([share * part for share, part in zip(shares, parts, strict=True)]).sum(0)

    return losses[0]._replace(
        total=mean(loss.total for loss in losses),
        main=mean(loss.main for loss in losses),
        subnets=mean(loss.subnets for loss in losses),
        hits=torch.stack([loss.hits for loss in losses]).sum(0),
    )


def _unwrap(forward: nn.Module) -> TreeForward:
    """Without DDP."""
    return forward.module if isinstance(forward, nn.parallel.DistributedDataParallel) else forward  # type: ignore[return-value]


def _sum(losses: Sequence[StimulativeLoss], plan: Plan) -> StimulativeLoss:
    """The loss of a whole plan from those of its parts."""
    subnets: dict[int, Tensor] = {}
    for tree, loss in enumerate(losses):
        subnets.update(zip(plan.members(tree), loss.subnets, strict=True))
    ordered = [subnets[subnet] for subnet in range(len(subnets))]
    return losses[0]._replace(
        total=torch.stack([loss.total for loss in losses]).sum(),
        subnets=torch.stack(ordered) if ordered else losses[0].subnets,
    )
