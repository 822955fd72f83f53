"""The stimulative loss as one operation: its Triton kernels where they run, the reference elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import runtime
from . import reference
from .checks import MainLoss, Normalization, Options, Supervision, check_tensors
from .reference import StimulativeLoss

FIELDS = 8
"""Numbers per row of logits that the forward keeps for the backward, in `rows` [B, K + 1, 8] float32:
maximum; scale over temperature; log of the sum of exponentials; shift; factor of (x - shift) in the gradient;
and of the teacher: maximum, scale over temperature, log-sum (where targets teach: their sum comes first)."""

IN_TRITON = ("kl", "ce_teacher", "ce_target")
"""Supervisions that have kernels; the others run the reference."""

_OPTIONS = (
    "float[] weights, str supervision, str normalize, bool normalize_main, float amplitude, "
    "float temperature, float main_weight, float label_smoothing"
)


def stimulative_loss(
    main: Tensor,
    subnets: Sequence[Tensor] | Tensor,
    targets: Tensor,
    *,
    weights: Sequence[float],
    supervision: Supervision = "kl",
    normalize: Normalization = "layer_norm",
    normalize_main: bool = True,
    amplitude: float = 1.0,
    temperature: float = 1.0,
    main_weight: float = 1.0,
    label_smoothing: float = 0.0,
    ensemble: float = 0.0,
    scale_by_teacher: bool = False,
    main_loss: MainLoss = "ce",
    target_threshold: float = 0.0,
    kernels: runtime.Kernels = "reference",
    check_targets: bool = False,
) -> StimulativeLoss:
    """Cross-entropy of the main network, and each subnet's distance to the main network's output.

    `reference.stimulative_loss` says what is computed and what the arguments mean. With Triton's kernels the
    losses are float32, class indices out of range give NaN, and there is one launch forward, one backward.

    Args:
        main: logits [B, C].
        subnets: K tensors of logits [B, C], or [K, B, C].
        targets: class indices, int64 [B], or probabilities [B, C].
        weights: of the subnets.
        supervision: `kl`, `ce_teacher` or `ce_target`; `dkd`, `mse` or `bce_teacher`, which have none.
        normalize: `layer_norm`, `l2` or `none`.
        normalize_main: whether the main cross-entropy sees normalized logits too.
        amplitude: factor on normalized logits.
        temperature: of the KL.
        main_weight: weight of the main cross-entropy.
        label_smoothing: of the targets.
        ensemble: share by which each subnet moves the teacher of those after it; without kernels, but for 0.
        scale_by_teacher: both sides of the KL times the main logits' deviation; without kernels.
        main_loss: `ce`, or `bce`, which has no kernels.
        target_threshold: of `bce`.
        kernels: `triton` or `reference`; `implementation` tells which one runs.
        check_targets: look for class indices out of range on any device, not on a CPU alone; waits for it.

    Raises:
        ValueError: tensors or numbers of tensors that do not fit, unknown options, targets out of range.
    """
    options = Options(
        supervision, normalize, normalize_main, amplitude, temperature, main_weight, label_smoothing
    )
    plain = ensemble == 0 and not scale_by_teacher and main_loss == "ce"
    if not plain or implementation(kernels, supervision, main) == "reference":
        return reference.stimulative_loss(
            main,
            subnets,
            targets,
            weights=weights,
            ensemble=ensemble,
            scale_by_teacher=scale_by_teacher,
            main_loss=main_loss,
            target_threshold=target_threshold,
            check_targets=check_targets,
            **options._asdict(),
        )
    options.check()
    check_tensors(main, subnets, targets, weights, supervision, check_targets=check_targets)
    tensors = [subnets] if isinstance(subnets, Tensor) else list(subnets)
    total, losses, hits, _ = _forward(main, tensors, targets, list(weights), *options)
    return StimulativeLoss(total, losses[0], losses[1:], hits)


def implementation(kernels: runtime.Kernels, supervision: Supervision, main: Tensor) -> runtime.Kernels:
    """Which implementation runs for a choice and main logits like these.

    Raises:
        ValueError: an unknown choice, or logits that the kernels do not take.
    """
    return "triton" if supervision in IN_TRITON and runtime.chooses_triton(kernels, main) else "reference"


def _run_forward(
    main: Tensor, subnets: list[Tensor], targets: Tensor, weights: list[float], *options: Any
) -> tuple[Tensor, ...]:
    from . import triton

    return triton.forward(main, _unstack(subnets), targets, weights, Options(*options))


def _fake_forward(
    main: Tensor, subnets: list[Tensor], targets: Tensor, weights: list[float], *options: Any
) -> tuple[Tensor, ...]:
    images, rows = main.shape[0], len(weights) + 1
    return (
        main.new_empty((), dtype=torch.float32),
        main.new_empty(rows, dtype=torch.float32),
        main.new_empty(2, dtype=torch.int64),
        main.new_empty(images, rows, FIELDS, dtype=torch.float32),
    )


def _run_backward(
    grad: Tensor,
    main: Tensor,
    subnets: list[Tensor],
    targets: Tensor,
    rows: Tensor,
    weights: list[float],
    *options: Any,
) -> Tensor:
    from . import triton

    return triton.backward(grad, main, _unstack(subnets), targets, rows, weights, Options(*options))


def _fake_backward(
    grad: Tensor,
    main: Tensor,
    subnets: list[Tensor],
    targets: Tensor,
    rows: Tensor,
    weights: list[float],
    *options: Any,
) -> Tensor:
    return main.new_empty(len(weights) + 1, *main.shape)


def _unstack(subnets: list[Tensor]) -> Sequence[Tensor]:
    return subnets[0].unbind(0) if subnets and subnets[0].ndim == 3 else subnets


class _Loss(torch.autograd.Function):
    """Gradients of the total for the main logits and the subnets', which come last: as many as there are."""

    @staticmethod
    def forward(ctx: Any, targets: Tensor, settings: tuple[Any, ...], main: Tensor, *subnets: Tensor) -> Any:
        with runtime.below_autograd():
            total, losses, hits, rows = _forward(main, list(subnets), targets, *settings)
        ctx.save_for_backward(targets, rows, main, *subnets)
        ctx.settings = settings
        ctx.mark_non_differentiable(losses, hits, rows)
        ctx.set_materialize_grads(False)
        return total, losses, hits, rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> Any:
        targets, rows, main, *subnets = ctx.saved_tensors
        if grad is None:
            return (None,) * (3 + len(subnets))
        grads = _backward(grad, main, subnets, targets, rows, *ctx.settings)
        stacked = len(subnets) == 1 and subnets[0].ndim == 3
        return None, None, grads[0], *([grads[1:]] if stacked else grads[1:].unbind(0))


def _autograd(
    main: Tensor, subnets: list[Tensor], targets: Tensor, weights: list[float], *options: Any
) -> Any:
    return _Loss.apply(targets, (weights, *options), main, *subnets)


_forward = runtime.register(
    "normalized_loss",
    f"(Tensor main, Tensor[] subnets, Tensor targets, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_forward,
    _fake_forward,
    _autograd,
)
_backward = runtime.register(
    "normalized_loss_backward",
    f"(Tensor grad, Tensor main, Tensor[] subnets, Tensor targets, Tensor rows, {_OPTIONS}) -> Tensor",
    _run_backward,
    _fake_backward,
)
