"""The 1x1 convolution of a normalized input in plain PyTorch: the specification of the fused operation.

Axes: N images, C channels (Cin, Cout), H height, W width, G groups of N/G images each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Norm(NamedTuple):
    """A batch norm whose statistics are known already.

    Attributes:
        weight: factor on the normalized channels [C].
        bias: added to them [C].
        mean: of each channel in each group [G, C].
        rstd: 1 / sqrt(biased variance + eps), likewise [G, C].
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    rstd: Tensor


def batch_norm_act_conv1x1(
    x: Tensor,
    conv_weight: Tensor,
    norm: Norm | None = None,
    *,
    training: bool = True,
    statistics: bool = True,
    stride: int = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """conv1x1(relu(batch_norm(x))), and its mean and biased variance per group and channel.

    Arguments and results as in `op.batch_norm_act_conv1x1`; float64 works too.
    """
    if norm is not None:
        x = F.relu(_normalized(x, norm, groups, training))
    y = F.conv2d(x, conv_weight.to(x.dtype), stride=stride)
    if not statistics:
        return y, None, None
    values = _at_least_float32(y.detach()).unflatten(0, (groups, -1))
    var, mean = torch.var_mean(values, dim=(1, 3, 4), correction=0)
    return y, mean, var


def _normalized(x: Tensor, norm: Norm, groups: int, training: bool) -> Tensor:
    """Batch norm with the given statistics; in training their derivatives are those of x's statistics."""
    values = _at_least_float32(x).unflatten(0, (groups, -1))
    mean, rstd = norm.mean, norm.rstd
    if training:
        own_var, own_mean = torch.var_mean(values, dim=(1, 3, 4), correction=0)
        mean = mean + (own_mean - own_mean.detach())  # adds zero, and the derivative
        rstd = rstd - 0.5 * rstd**3 * (own_var - own_var.detach())
    centred = values - mean[:, None, :, None, None]
    scale = (rstd * norm.weight)[:, None, :, None, None]
    return (centred * scale + norm.bias[:, None, None]).flatten(0, 1).to(x.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
