"""Batch norm, residual addition and ReLU in plain PyTorch: the specification of the fused operation.

Axes: N images, C channels, H height, W width, G groups of N/G images each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
) -> Tensor:
    """relu(batch_norm(x) + residual), each of `groups` runs of N/groups images with its own statistics.

    Arguments and result as in `op.batch_norm_act`; float64 works too.
    """
    if statistics is not None:
        mean, var = statistics
        y = normalize(x, weight, bias, mean, (var + eps).rsqrt(), training=True)
        _update_running(x, running_mean, running_var, statistics, momentum, tracked_group)
    elif not training or groups == 1:
        tracked = not training or tracked_group == 0
        running = (running_mean, running_var) if tracked else (None, None)
        y = F.batch_norm(x, *running, weight, bias, training, momentum, eps)
    else:
        parts = []
        for group, part in enumerate(x.chunk(groups)):
            running = (running_mean, running_var) if group == tracked_group else (None, None)
            parts.append(F.batch_norm(part, *running, weight, bias, training, momentum, eps))
        y = torch.cat(parts)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


def batch_statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    groups: int = 1,
    tracked_group: int | None = 0,
) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation; arguments and results as in `op.batch_statistics`; float64 works too."""
    mean, var = moments(x.detach(), groups)
    _update_running(x, running_mean, running_var, (mean, var), momentum, tracked_group)
    return mean, (var + eps).rsqrt()


def normalize(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, *, training: bool
) -> Tensor:
    """Batch norm with given statistics [G, C]; in training their derivatives are those of x's own."""
    groups, mean, rstd = len(mean), mean.detach(), rstd.detach()
    if training:
        own_mean, own_var = moments(x, groups)
        mean = mean + (own_mean - own_mean.detach())  # adds zero, and the derivative
        rstd = rstd - 0.5 * rstd**3 * (own_var - own_var.detach())
    values = _grouped(x, groups)
    shape = (1, -1, *[1] * (values.ndim - 3))  # one channel's, in each group
    scale = (rstd * weight).unflatten(1, shape)
    y = (values - mean.unflatten(1, shape)) * scale + bias.view(shape)
    return y.flatten(0, 1).to(x.dtype)


def moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [G, C] of an activation, float32 at least."""
    values = _grouped(x, groups)
    var, mean = torch.var_mean(values, dim=(1, *range(3, values.ndim)), correction=0)
    return mean, var


def _grouped(x: Tensor, groups: int) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (groups, -1))


@torch.no_grad()
def _update_running(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    statistics: tuple[Tensor, Tensor],
    momentum: float,
    tracked_group: int | None,
) -> None:
    """Average one group's mean and unbiased variance in."""
    if running_mean is None or running_var is None or tracked_group is None:
        return
    mean, var = statistics
    rows = x.numel() // mean.numel()
    running_mean.lerp_(mean[tracked_group], momentum)
    running_var.lerp_(var[tracked_group] * (rows / (rows - 1)), momentum)
