"""1x1 convolution with batch norm before it and statistics after it: correctness, and ResNet-50's shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.kernels.batchnorm_act_conv1x1 import Norm, batch_norm_act_conv1x1
from fasttrain.kernels.runtime import Kernels

from ..accuracy import Comparison
from ..case import Case, Check

_EPS = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One call of the operation on random inputs.

    Attributes:
        shape: of x.
        outputs: channels of y.
        dtype: of x.
        norm: whether a batch norm precedes.
        training: whether its statistics are those of x.
        statistics: whether those of y are computed.
        stride: of the convolution.
        groups: of the batch.
        mean: of x.
    """

    shape: tuple[int, int, int, int]
    outputs: int
    dtype: torch.dtype = torch.float32
    norm: bool = True
    training: bool = True
    statistics: bool = True
    stride: int = 1
    groups: int = 1
    mean: float = 1.0

    @property
    def label(self) -> str:
        """What is set, in words."""
        shape = "x".join(map(str, self.shape))
        words = [f"{shape} to {self.outputs}", str(self.dtype).removeprefix("torch.")]
        words += ["norm"] * self.norm + ["constant"] * (not self.training)
        words += ["statistics"] * self.statistics
        words += [f"stride {self.stride}"] * (self.stride > 1)
        return " ".join([*words, f"groups {self.groups}"])


SETTINGS = (
    Setting(shape=(5, 64, 7, 11), outputs=100),
    Setting(shape=(3, 24, 9, 7), outputs=8, groups=3),
    Setting(shape=(4, 100, 5, 7), outputs=64, dtype=torch.bfloat16, groups=2),
    Setting(shape=(2, 8, 13, 11), outputs=256, dtype=torch.float16),
    Setting(shape=(3, 256, 5, 5), outputs=24, dtype=torch.bfloat16, statistics=False),
    Setting(shape=(2, 24, 9, 9), outputs=64, dtype=torch.float16, training=False, groups=2),
    Setting(shape=(6, 64, 6, 5), outputs=24, training=False, statistics=False, groups=3),
    Setting(shape=(5, 100, 5, 7), outputs=24, dtype=torch.bfloat16, norm=False),
    Setting(shape=(4, 64, 9, 6), outputs=100, norm=False, stride=2, groups=2),
    Setting(shape=(3, 24, 8, 7), outputs=256, dtype=torch.float16, norm=False, stride=3, groups=3),
    Setting(shape=(1, 8, 1, 1), outputs=8, norm=False),
    # what the statistics add up does not cancel
    Setting(shape=(4, 24, 16, 15), outputs=24, norm=False, mean=10.0),
)


class Inputs(NamedTuple):
    """Arguments of one call and the gradient of its output; mean and rstd in float64, None without a norm."""

    x: Tensor
    conv_weight: Tensor
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    rstd: Tensor | None
    grad: Tensor


def inputs(setting: Setting, device: torch.device) -> Inputs:
    """Random ones, in channels_last."""
    images, channels, height, width = setting.shape
    sides = [(side - 1) // setting.stride + 1 for side in (height, width)]

    def activation(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)

    x = (activation(*setting.shape) + setting.mean).to(setting.dtype)
    conv_weight = torch.randn(setting.outputs, channels, 1, 1, device=device) / channels**0.5
    grad = activation(images, setting.outputs, *sides).to(setting.dtype)
    if not setting.norm:
        return Inputs(x, conv_weight, None, None, None, None, grad)
    weight, bias = (torch.randn(channels, device=device) for _ in range(2))
    mean, var = statistics(x.double(), setting.groups)
    if not setting.training:
        mean, var = mean + torch.randn_like(mean), var + torch.rand_like(var)
    return Inputs(x, conv_weight, weight, bias, mean, (var + _EPS).rsqrt(), grad)


def statistics(x: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each group's channels [groups, C]."""
    var, mean = torch.var_mean(x.unflatten(0, (groups, -1)), dim=(1, 3, 4), correction=0)
    return mean, var


def results(kernels: Kernels, given: Inputs, setting: Setting, exact: bool = False) -> dict[str, Tensor]:
    """Output, statistics and gradients of one call; `exact`: in float64."""

    def copied(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().clone(memory_format=torch.preserve_format)
        return tensor.double() if exact else tensor

    names = ["x", "conv_weight"] + ["weight", "bias"] * setting.norm
    leaves = {name: copied(getattr(given, name)).requires_grad_() for name in names}
    norm = None
    if given.mean is not None and given.rstd is not None:
        known = (given.mean, given.rstd) if exact else (given.mean.float(), given.rstd.float())
        norm = Norm(leaves["weight"], leaves["bias"], *known)
    y, mean, var = batch_norm_act_conv1x1(
        leaves["x"],
        leaves["conv_weight"],
        norm,
        training=setting.training,
        statistics=setting.statistics,
        stride=setting.stride,
        groups=setting.groups,
        kernels=kernels,
    )
    y.backward(copied(given.grad))
    moments = {} if mean is None or var is None else {"mean": mean, "variance": var}
    gradients = {f"{name}'s gradient": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"output": y.detach(), **moments, **gradients}


def compare(setting: Setting, device: torch.device) -> list[Comparison]:
    """Every result of one setting on random inputs."""
    torch.manual_seed(0)
    given = inputs(setting, device)
    out = results("triton", given, setting)
    native = results("reference", given, setting)
    exact = results("reference", given, setting, exact=True)
    return [Comparison(name, out[name], native[name], exact[name]) for name in out]


def checks(device: torch.device) -> list[Check]:
    """Every setting above."""
    return [Check(setting.label, partial(compare, setting, device)) for setting in SETTINGS]


SHAPES = (
    (56, 64, 256),
    (56, 256, 64),
    (56, 64, 64),
    (28, 128, 512),
    (28, 512, 128),
    (14, 256, 1024),
    (14, 1024, 256),
    (7, 512, 2048),
    (7, 2048, 512),
)
"""Side, Cin and Cout of ResNet-50's 1x1 convolutions at crop 224."""


def cases(device: torch.device) -> list[Case]:
    """ResNet-50's 1x1 convolutions at batch 256; the last of each block has batch norm and ReLU before it."""
    return [
        _case(
            Setting(
                shape=(256, inputs, side, side), outputs=outputs, dtype=torch.bfloat16, norm=outputs > inputs
            ),
            device,
        )
        for side, inputs, outputs in SHAPES
    ]


def _case(setting: Setting, device: torch.device) -> Case:
    images, channels, height, width = setting.shape
    pixels = images * height * width * setting.dtype.itemsize
    x, y = pixels * channels, pixels * setting.outputs
    # forward: x and y; backward: y's gradient and x for the weight's, and x's gradient. With a norm that one
    # needs sums over all of g = (y's gradient @ weight, masked): g is written, then it and x are read again
    moved = 2 * y + (6 if setting.norm else 3) * x
    return Case(
        shape=setting.label,
        moved=moved,
        prepare=lambda: prepared(setting, device),
        calls={
            "triton": partial(run, triton),
            "eager": partial(run, eager),
            "compile": partial(run, torch.compile(plain, dynamic=False)),
        },
    )


def triton(x: Tensor, conv_weight: Tensor, norm: Norm | None) -> tuple[Tensor, ...]:
    """The fused operation; y first."""
    y, *moments = batch_norm_act_conv1x1(x, conv_weight, norm, kernels="triton")
    return y, *(moment for moment in moments if moment is not None)


def plain(x: Tensor, conv_weight: Tensor, norm: Norm | None) -> tuple[Tensor, ...]:
    """The same without it. Its backward takes the statistics for constants: one read of x less."""
    y = _convolved(x, conv_weight, norm)
    return y, *statistics(y.detach().float())


def eager(x: Tensor, conv_weight: Tensor, norm: Norm | None) -> tuple[Tensor, ...]:
    """Like `plain`, with the statistics kernel of PyTorch's own batch norm."""
    y = _convolved(x, conv_weight, norm)
    return y, *torch.batch_norm_stats(y.detach(), _EPS)


def _convolved(x: Tensor, conv_weight: Tensor, norm: Norm | None) -> Tensor:
    if norm is not None:
        var = norm.rstd[0] ** -2 - _EPS
        x = F.relu(F.batch_norm(x, norm.mean[0], var, norm.weight, norm.bias, training=False, eps=_EPS))
    return F.conv2d(x, conv_weight.to(x.dtype))


class Prepared(NamedTuple):
    """Arguments of one call, of which the differentiable ones ask for gradients, and y's gradient."""

    x: Tensor
    conv_weight: Tensor
    norm: Norm | None
    grad: Tensor


def prepared(setting: Setting, device: torch.device) -> Prepared:
    """Random ones."""
    x, conv_weight, weight, bias, mean, rstd, grad = inputs(setting, device)
    norm = None
    if weight is not None and bias is not None and mean is not None and rstd is not None:
        norm = Norm(weight.requires_grad_(), bias.requires_grad_(), mean.float(), rstd.float())
    return Prepared(x.requires_grad_(), conv_weight.requires_grad_(), norm, grad)


def run(operation: Callable[..., tuple[Tensor, ...]], given: Any) -> tuple[Tensor, ...]:
    """One forward and backward; the gradients."""
    y, *_ = operation(given.x, given.conv_weight, given.norm)
    leaves = [given.x, given.conv_weight, *(given.norm or ())[:2]]
    return torch.autograd.grad(y, leaves, given.grad)
