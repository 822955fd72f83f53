"""The public face of fused batch norm + ReLU + max-pool, the ResNet stem's.

Axes: N images, C channels, H height, W width, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import runtime
from ..batchnorm_act.op import channels_last, check_arguments, count_updates
from ..runtime import Kernels, below_autograd, chooses_triton, register
from . import reference

if runtime.triton is not None:
    from ..batchnorm_act import triton as batch_norm
    from . import triton as fused


def batch_norm_act_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    groups: int = 1,
    tracked_group: int | None = 0,
    kernels: Kernels = "reference",
) -> Tensor:
    """max_pool(relu(batch_norm(x))), windows of 3x3, stride 2, padding 1; two launches forward, two backward.

    The activation between is never stored. The kernels keep x, and at the pooled size x at each window's
    maximum and one byte that says where it is. They compare the values of a window before rounding them to
    half precision, where the reference compares rounded ones: it sees more ties, of which the first wins.

    Args:
        x: [N, C, H, W]; float32, float16 or bfloat16 (float64 in the reference). Anything but channels_last
            is copied to it first.
        weight: [C] float32 (float64 with a float64 x), like bias and the running statistics.
        bias: [C].
        running_mean: [C], updated in place in training mode, as torch's batch norm does; None: not.
        running_var: [C], takes the unbiased variance; given or None together with running_mean.
        training: normalize by the batch's statistics, else by the running ones.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        groups: runs of N/G consecutive images, each normalized by its own statistics.
        tracked_group: the one that updates the running statistics; None: none does.
        kernels: `triton` on CUDA (or under Triton's interpreter), or `reference`.

    Returns:
        [N, C, (H+1)//2, (W+1)//2] of x's dtype, in channels_last.

    Raises:
        ValueError: arguments that do not fit.
    """
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: [N, C, H, W]")
    check_arguments(x, weight, bias, running_mean, running_var, training, eps, groups, tracked_group)
    x = channels_last(x)
    if chooses_triton(kernels, x) and x.numel():
        group = -1 if tracked_group is None else tracked_group
        return _forward(x, weight, bias, running_mean, running_var, training, momentum, eps, groups, group)[0]
    return reference.batch_norm_act_pool(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        training=training,
        momentum=momentum,
        eps=eps,
        groups=groups,
        tracked_group=tracked_group,
    )


def _forward_kernels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    groups: int,
    tracked_group: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output, x at each maximum, its index in the window, mean and inverse deviation [G, C] (or empty)."""
    x = channels_last(x)
    if not training:
        assert running_mean is not None
        assert running_var is not None
        pooled = fused.normalize_and_pool(x, running_mean, running_var, weight, bias, False, eps, 1)
        return *pooled, weight.new_empty(0), weight.new_empty(0)
    tracked = (running_mean, running_var) if tracked_group >= 0 else (None, None)
    mean, rstd = batch_norm.statistics(x, groups, eps, *tracked, momentum, tracked_group)
    return *fused.normalize_and_pool(x, mean, rstd, weight, bias, True, eps, groups), mean, rstd


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    groups: int,
    tracked_group: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape = (groups, x.shape[1]) if training else (0,)
    y, index = fused.pooled_like(x, x.dtype), fused.pooled_like(x, torch.uint8)
    return y, torch.empty_like(y), index, weight.new_empty(shape), weight.new_empty(shape)


def _backward_kernels(
    grad: Tensor,
    x: Tensor,
    winner: Tensor,
    index: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    eps: float,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    grad, x = channels_last(grad), channels_last(x)
    groups = groups if training else 1
    _, sums, grad_weight, grad_bias = batch_norm.gradient_sums(
        grad, winner, None, mean, spread, weight, bias, training, eps, True, groups
    )
    grad_x = fused.input_gradient(grad, index, x, sums, mean, spread, weight, training, eps, groups)
    return grad_x, grad_weight, grad_bias


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    winner: Tensor,
    index: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    eps: float,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(channels_last(x)), torch.empty_like(weight), torch.empty_like(bias)


class _BatchNormActPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        groups: int,
        tracked_group: int,
    ) -> tuple[Tensor, ...]:
        with below_autograd():
            y, winner, index, mean, rstd = _forward(
                x, weight, bias, running_mean, running_var, training, momentum, eps, groups, tracked_group
            )
        ctx.mark_non_differentiable(winner, index, mean, rstd)
        ctx.set_materialize_grads(False)  # of those four: each would be a launch
        count_updates(running_mean, running_var, training, tracked_group)
        moments = (mean, rstd) if training else (running_mean, running_var)
        ctx.save_for_backward(x, winner, index, *moments, weight, bias)
        ctx.options = (training, eps, groups)
        return y, winner, index, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 10
        return *_backward(grad, *ctx.saved_tensors, *ctx.options), *(None,) * 7


_backward = register(
    "batch_norm_act_pool_backward",
    "(Tensor grad, Tensor x, Tensor winner, Tensor index, Tensor mean, Tensor spread, Tensor weight, "
    "Tensor bias, bool training, float eps, int groups) -> (Tensor, Tensor, Tensor)",
    _backward_kernels,
    _backward_fake,
)
_forward = register(
    "batch_norm_act_pool",
    "(Tensor x, Tensor weight, Tensor bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "bool training, float momentum, float eps, int groups, int tracked_group) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_kernels,
    _forward_fake,
    _BatchNormActPool.apply,
)
