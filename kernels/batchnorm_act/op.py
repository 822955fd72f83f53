"""The public face of fused batch norm + residual addition + ReLU.

Axes: N images, C channels, H height, W width, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import runtime
from ..runtime import DTYPES, Kernels, below_autograd, chooses_triton, register
from . import reference

if runtime.triton is not None:
    from . import triton as fused


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    groups: int = 1,
    tracked_group: int | None = 0,
    statistics: tuple[Tensor, Tensor] | None = None,
    kernels: Kernels = "reference",
) -> Tensor:
    """relu(batch_norm(x) + residual), in two launches forward (one with `statistics`) and two backward.

    Args:
        x: [N, C, H, W], or [N, C]; float32, float16 or bfloat16 (float64 in the reference). Anything but
            channels_last is copied to it first.
        weight: [C] float32 (float64 with a float64 x), like bias and the running statistics.
        bias: [C].
        running_mean: [C], updated in place in training mode, as torch's batch norm does; None: not.
        running_var: [C], takes the unbiased variance; given or None together with running_mean.
        residual: added before the ReLU; of x's shape and dtype.
        training: normalize by the batch's statistics, else by the running ones.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        relu: whether a ReLU follows.
        groups: runs of N/G consecutive images, each normalized by its own statistics.
        tracked_group: the one that updates the running statistics; None: none does.
        statistics: in training mode, mean and biased variance [G, C] of x where they are known already, of
            the weight's dtype. They are differentiated as the functions of x that they are; no gradient goes
            to these tensors.
        kernels: `triton` on CUDA (or under Triton's interpreter), or `reference`.

    Returns:
        Of x's shape and dtype, in channels_last.

    Raises:
        ValueError: arguments that do not fit.
    """
    check_arguments(x, weight, bias, running_mean, running_var, training, eps, groups, tracked_group)
    if residual is not None:
        _check_residual(x, residual)
        residual = channels_last(residual)
    if statistics is not None:
        _check_statistics(x, statistics, training, groups)
    x = channels_last(x)
    if chooses_triton(kernels, x) and x.numel():
        tensors = (x, weight, bias, running_mean, running_var, residual, *(statistics or (None, None)))
        tracked = -1 if tracked_group is None else tracked_group
        return _forward(*tensors, training, momentum, eps, relu, groups, tracked)[0]
    return reference.batch_norm_act(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        residual,
        training=training,
        momentum=momentum,
        eps=eps,
        relu=relu,
        groups=groups,
        tracked_group=tracked_group,
        statistics=statistics,
    )


def batch_statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    groups: int = 1,
    tracked_group: int | None = 0,
    kernels: Kernels = "reference",
) -> tuple[Tensor, Tensor]:
    """A training-mode batch norm without its application, which the next operation does; one launch.

    Args:
        x: as for `batch_norm_act`, like the other arguments.
        running_mean: [C], updated in place; None: not.
        running_var: [C], takes the unbiased variance; given or None together with running_mean.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        groups: runs of N/G consecutive images, each with its own statistics.
        tracked_group: the one that updates the running statistics; None: none does.
        kernels: `triton` on CUDA (or under Triton's interpreter), or `reference`.

    Returns:
        Mean and inverse deviation [G, C], float32 (float64 with a float64 x), without gradients.

    Raises:
        ValueError: arguments that do not fit.
    """
    _check_batch(x, running_mean, running_var, True, eps, groups, tracked_group)
    x = channels_last(x)
    if chooses_triton(kernels, x):
        tracked = -1 if tracked_group is None else tracked_group
        return _statistics(x, running_mean, running_var, momentum, eps, groups, tracked)
    return reference.batch_statistics(
        x,
        running_mean,
        running_var,
        momentum=momentum,
        eps=eps,
        groups=groups,
        tracked_group=tracked_group,
    )


def channels_last(x: Tensor) -> Tensor:
    """An activation [N, C] contiguous, [N, C, H, W] in channels_last: itself, or a copy."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def count_updates(
    running_mean: Tensor | None, running_var: Tensor | None, training: bool, tracked_group: int
) -> None:
    """Tell autograd that the running statistics changed: an evaluation's backward may still need them."""
    if training and tracked_group >= 0 and running_mean is not None and running_var is not None:
        torch.autograd.graph.increment_version((running_mean, running_var))


def check_arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    groups: int,
    tracked_group: int | None,
) -> None:
    """Raise unless a batch norm's arguments fit each other.

    Raises:
        ValueError: what was given and what is allowed.
    """
    if weight is None or bias is None:
        raise ValueError("weight or bias is None; allowed: a tensor [C] each (affine=True)")
    _check_batch(x, running_mean, running_var, training, eps, groups, tracked_group, weight=weight, bias=bias)


def _check_batch(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    groups: int,
    tracked_group: int | None,
    **affine: Tensor | None,
) -> None:
    if x.ndim not in (2, 4) or x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: [N, C] and [N, C, H, W], C at least 1")
    if x.dtype not in (torch.float64, *DTYPES):
        raise ValueError(f"x is {x.dtype}; allowed: {', '.join(map(str, (torch.float64, *DTYPES)))}")
    if not 0 < eps < 1:
        raise ValueError(f"eps is {eps}; allowed: above 0, below 1")
    if (running_mean is None) != (running_var is None):
        raise ValueError("one of running_mean and running_var is None; allowed: both or neither")
    if running_mean is None and not training:
        raise ValueError("running_mean is None in evaluation mode; allowed there: a tensor [C]")
    for name, tensor in (affine | {"running_mean": running_mean, "running_var": running_var}).items():
        if tensor is not None:
            _check_parameter(name, tensor, x, x.shape[1:2])
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(f"groups is {groups}; allowed: divisors of the {x.shape[0]} images")
    if tracked_group is not None and not 0 <= tracked_group < groups:
        raise ValueError(f"tracked_group is {tracked_group}; allowed: None, 0 to {groups - 1}")
    if training and x.numel() <= x.shape[1] * groups:
        raise ValueError(
            f"x has shape {tuple(x.shape)} in {groups} groups; allowed: more than 1 value per channel and "
            "group when training"
        )


def _check_parameter(name: str, tensor: Tensor, x: Tensor, shape: tuple[int, ...]) -> None:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(
            f"{name} is {tuple(tensor.shape)}, {tensor.dtype}; allowed for x {tuple(x.shape)}, "
            f"{x.dtype}: {list(shape)}, contiguous, {dtype}"
        )
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}; allowed: x's device, {x.device}")


def _check_statistics(x: Tensor, statistics: tuple[Tensor, Tensor], training: bool, groups: int) -> None:
    if not training:
        raise ValueError("statistics are given in evaluation mode; allowed there: None")
    for name, tensor in zip(("statistics' mean", "statistics' variance"), statistics, strict=True):
        _check_parameter(name, tensor, x, (groups, x.shape[1]))


def _check_residual(x: Tensor, residual: Tensor) -> None:
    if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
        raise ValueError(
            f"residual is {tuple(residual.shape)}, {residual.dtype}, on {residual.device}; allowed: as x, "
            f"{tuple(x.shape)}, {x.dtype}, on {x.device}"
        )


def _forward_kernels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    known_mean: Tensor | None,
    known_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
    groups: int,
    tracked_group: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, mean and inverse deviation [G, C] (empty: in evaluation mode, and a mean that is known)."""
    x = channels_last(x)
    residual = None if residual is None else channels_last(residual)
    if not training:
        assert running_mean is not None
        assert running_var is not None
        y = fused.normalize(x, running_mean, running_var, weight, bias, residual, False, eps, relu, 1)
        return y, weight.new_empty(0), weight.new_empty(0)
    tracked = (running_mean, running_var) if tracked_group >= 0 else (None, None)
    if known_mean is not None and known_var is not None:
        rstd = torch.empty_like(known_var)
        updates = fused.Updates(rstd, *tracked, momentum, tracked_group)
        y = fused.normalize(
            x, known_mean, known_var, weight, bias, residual, False, eps, relu, groups, updates
        )
        return y, weight.new_empty(0), rstd
    mean, rstd = fused.statistics(x, groups, eps, *tracked, momentum, tracked_group)
    return fused.normalize(x, mean, rstd, weight, bias, residual, True, eps, relu, groups), mean, rstd


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    known_mean: Tensor | None,
    known_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
    groups: int,
    tracked_group: int,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (groups, x.shape[1]) if training else (0,)
    mean = weight.new_empty(shape if known_mean is None else (0,))
    return torch.empty_like(channels_last(x)), mean, weight.new_empty(shape)


def _statistics_kernels(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    groups: int,
    tracked_group: int,
) -> tuple[Tensor, Tensor]:
    tracked = (running_mean, running_var) if tracked_group >= 0 else (None, None)
    return fused.statistics(channels_last(x), groups, eps, *tracked, momentum, tracked_group)


def _statistics_fake(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    groups: int,
    tracked_group: int,
) -> tuple[Tensor, Tensor]:
    shape = (groups, x.shape[1])
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


def _statistics_without_gradient(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    groups: int,
    tracked_group: int,
) -> tuple[Tensor, Tensor]:
    with below_autograd():
        mean, rstd = _statistics(x, running_mean, running_var, momentum, eps, groups, tracked_group)
    count_updates(running_mean, running_var, True, tracked_group)
    return mean, rstd


def _backward_kernels(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    eps: float,
    relu: bool,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, the residual (empty without y), weight and bias."""
    grad, x = channels_last(grad), channels_last(x)
    groups = groups if training else 1
    parameters = (mean, spread, weight, bias, training, eps)
    masked, sums, grad_weight, grad_bias = fused.gradient_sums(grad, x, y, *parameters, relu, groups)
    g = grad if y is None else masked
    grad_x = fused.input_gradient(g, x, sums, *parameters, relu and y is None, groups)
    return grad_x, masked, grad_weight, grad_bias


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    eps: float,
    relu: bool,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, x = channels_last(grad), channels_last(x)
    masked = torch.empty_like(grad) if y is not None else grad.new_empty(0)
    return torch.empty_like(x), masked, torch.empty_like(weight), torch.empty_like(bias)


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        residual: Tensor | None,
        known_mean: Tensor | None,
        known_var: Tensor | None,
        *settings: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        training, _, eps, relu, groups, tracked_group = settings
        tensors = (x, weight, bias, running_mean, running_var, residual, known_mean, known_var)
        with below_autograd():
            y, mean, rstd = _forward(*tensors, *settings)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)  # of those two: each would be a launch
        count_updates(running_mean, running_var, training, tracked_group)
        moments = (running_mean, running_var)
        if training:
            moments = (mean if known_mean is None else known_mean, rstd)
        ctx.save_for_backward(x, y if relu and residual is not None else None, *moments, weight, bias)
        ctx.options = (training, eps, relu, groups)
        ctx.residual = residual is not None
        return y, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 14
        x, y, *parameters = ctx.saved_tensors
        grad_x, masked, grad_weight, grad_bias = _backward(grad, x, y, *parameters, *ctx.options)
        grad_residual = None
        if ctx.residual:
            grad_residual = grad if y is None else masked
        return grad_x, grad_weight, grad_bias, None, None, grad_residual, *(None,) * 8


_backward = register(
    "batch_norm_act_backward",
    "(Tensor grad, Tensor x, Tensor? y, Tensor mean, Tensor spread, Tensor weight, Tensor bias, "
    "bool training, float eps, bool relu, int groups) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_kernels,
    _backward_fake,
)
_forward = register(
    "batch_norm_act",
    "(Tensor x, Tensor weight, Tensor bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "Tensor? residual, Tensor? known_mean, Tensor? known_var, bool training, float momentum, float eps, "
    "bool relu, int groups, int tracked_group) -> (Tensor, Tensor, Tensor)",
    _forward_kernels,
    _forward_fake,
    _BatchNormAct.apply,
)
_statistics = register(
    "batch_statistics",
    "(Tensor x, Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, float eps, int groups, "
    "int tracked_group) -> (Tensor, Tensor)",
    _statistics_kernels,
    _statistics_fake,
    _statistics_without_gradient,
)
