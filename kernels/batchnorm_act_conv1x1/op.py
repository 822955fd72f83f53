"""The public face of the 1x1 convolution with a batch norm before it and the statistics for one after it.

Axes: N images, C channels (Cin, Cout), H height, W width, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..runtime import DTYPES, Kernels, below_autograd, chooses_triton, register
from . import reference
from .reference import Norm

_NORM = "Tensor? weight, Tensor? bias, Tensor? mean, Tensor? rstd"


def batch_norm_act_conv1x1(
    x: Tensor,
    conv_weight: Tensor,
    norm: Norm | None = None,
    *,
    training: bool = True,
    statistics: bool = True,
    stride: int = 1,
    groups: int = 1,
    kernels: Kernels = "reference",
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """conv1x1(relu(batch_norm(x))), and its mean and biased variance per group and channel.

    Neither relu(batch_norm(x)) nor its gradient is ever stored, and the statistics cost no pass over y. They
    have no gradient: the batch norm that uses them differentiates them as functions of y, as this one does
    with those of x. Without `norm` and `statistics` nothing is left to fuse: plain PyTorch runs.

    Args:
        x: [N, Cin, H, W], float32, float16 or bfloat16; channels_last, else it is copied.
        conv_weight: [Cout, Cin, 1, 1]; rounded to x's dtype here, so that the float32 parameter of a mixed
            precision run gets its gradient without rounding.
        norm: batch norm and ReLU of x: weight and bias [Cin], mean and rstd [groups, Cin], all float32;
            None: x is convolved as it is.
        training: whether the norm's mean and rstd are statistics of this x, so that its gradient goes
            through them too; False: they are constants.
        statistics: whether to compute mean and variance.
        stride: of the convolution; 1 with a norm.
        groups: number of runs of N/groups images with statistics of their own; all share the weights.
        kernels: `triton` or `reference`; tensors on a device without Triton use the reference.

    Returns:
        y [N, Cout, H', W'] channels_last, and mean and variance [groups, Cout] float32, or None.

    Raises:
        ValueError: shapes, dtypes, devices or numbers that do not fit.
    """
    _check(x, conv_weight, norm, stride, groups)
    triton = chooses_triton(kernels, x, conv_weight)
    if not triton or not (norm or statistics):
        return reference.batch_norm_act_conv1x1(
            x, conv_weight, norm, training=training, statistics=statistics, stride=stride, groups=groups
        )
    tensors = norm or (None, None, None, None)
    y, mean, var = _forward(x, conv_weight, *tensors, training, statistics, stride, groups)
    return (y, mean, var) if statistics else (y, None, None)


def _check(x: Tensor, conv_weight: Tensor, norm: Norm | None, stride: int, groups: int) -> None:
    if x.ndim != 4 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: [N, Cin, H, W], none of them 0")
    images, inputs = x.shape[:2]
    if conv_weight.ndim != 4 or conv_weight.shape[1:] != (inputs, 1, 1) or len(conv_weight) == 0:
        raise ValueError(
            f"conv_weight has shape {tuple(conv_weight.shape)}; allowed: [Cout, {inputs}, 1, 1], Cout > 0"
        )
    for name, tensor in (("x", x), ("conv_weight", conv_weight)):
        if tensor.dtype not in (torch.float64, *DTYPES):
            raise ValueError(
                f"{name} is {tensor.dtype}; allowed: {', '.join(map(str, (torch.float64, *DTYPES)))}"
            )
    if stride < 1 or (norm is not None and stride != 1):
        raise ValueError(f"stride is {stride}; allowed: 1 with a norm, without one any from 1")
    if groups < 1 or images % groups:
        raise ValueError(f"{groups} groups of {images} images; allowed: divisors of the number of images")
    if norm is not None:
        _check_norm(norm, x, groups)
    for tensor in (conv_weight, *(norm or ())):
        if tensor.device != x.device:
            raise ValueError(f"a tensor is on {tensor.device}; x is on {x.device}")


def _check_norm(norm: Norm, x: Tensor, groups: int) -> None:
    inputs = x.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    shapes = ((inputs,), (inputs,), (groups, inputs), (groups, inputs))
    for name, tensor, shape in zip(norm._fields, norm, shapes, strict=True):
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(
                f"norm.{name} is {tensor.dtype} {tuple(tensor.shape)}; allowed: {dtype} {shape} for this x"
            )


def _run(
    x: Tensor,
    conv_weight: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    training: bool,
    statistics: bool,
    stride: int,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton

    norm = (weight, bias, mean, rstd)
    return triton.forward(x, conv_weight.to(x.dtype), norm, statistics, stride, groups)


def _fake(
    x: Tensor,
    conv_weight: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    training: bool,
    statistics: bool,
    stride: int,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    images, _, height, width = x.shape
    outputs = conv_weight.shape[0]
    shape = (images, outputs, (height - 1) // stride + 1, (width - 1) // stride + 1)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    mean, var = (x.new_empty((groups if statistics else 0, outputs), dtype=torch.float32) for _ in range(2))
    return y, mean, var


def _run_backward(
    dy: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    training: bool,
    for_input: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton

    norm = (weight, bias, mean, rstd)
    dx, sums, dw = (x.new_empty(0, dtype=torch.float32) for _ in range(3))
    if for_input:
        dx, sums = triton.input_gradient(dy, x, conv_weight, norm, training)
    if for_weight:
        dw = triton.weight_gradient(dy, x, norm)
    return dx, sums, dw


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    training: bool,
    for_input: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, sums, dw = (x.new_empty(0, dtype=torch.float32) for _ in range(3))
    if for_input:
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        sums = x.new_empty((2, *mean.shape), dtype=torch.float32)
    if for_weight:
        dw = x.new_empty(conv_weight.shape, dtype=torch.float32)
    return dx, sums, dw


class _Function(torch.autograd.Function):
    """The backward without a norm is PyTorch's own: there is nothing to fuse into it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv_weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
        *norm, training, _, stride, _ = others
        rounded = conv_weight.to(x.dtype)
        with below_autograd():
            y, mean, var = _forward(x, rounded, *others)
        ctx.save_for_backward(x, rounded, *norm)
        ctx.training, ctx.stride, ctx.dtype = training, stride, conv_weight.dtype
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        return y, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        for_x, for_weight, *for_norm = ctx.needs_input_grad[:4]
        if dy is None:
            return (None,) * 10
        x, conv_weight, *norm = ctx.saved_tensors
        if norm[0] is None:
            dx, dw = _plain_gradients(dy, x, conv_weight, ctx.stride, for_x, for_weight)
            return dx, None if dw is None else dw.to(ctx.dtype), *(None,) * 8
        for_input = for_x or any(for_norm)
        dx, sums, dw = _backward(dy, x, conv_weight, *norm, ctx.training, for_input, for_weight)
        return (
            dx if for_x else None,
            dw.to(ctx.dtype) if for_weight else None,
            sums[1].sum(0) if for_norm[0] else None,
            sums[0].sum(0) if for_norm[1] else None,
            *(None,) * 6,
        )


def _plain_gradients(
    dy: Tensor, x: Tensor, conv_weight: Tensor, stride: int, for_x: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, conv_weight, None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], 1, [for_x, for_weight, False]
    )
    return dx, dw


_backward = register(
    "batch_norm_act_conv1x1_backward",
    "(Tensor dy, Tensor x, Tensor conv_weight, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, "
    "bool training, bool for_input, bool for_weight) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
_forward = register(
    "batch_norm_act_conv1x1",
    f"(Tensor x, Tensor conv_weight, {_NORM}, bool training, bool statistics, int stride, int groups) "
    "-> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
    _Function.apply,
)
