"""Batch norm, residual addition and ReLU in plain PyTorch: the specification of the fused operation.

Axes: N images, C channels, H height, W width.
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
) -> Tensor:
    """relu(batch_norm(x) + residual), each of `groups` runs of N/groups images with its own statistics.

    Arguments and result as in `op.batch_norm_act`; float64 works too.
    """
    if not training or groups == 1:
        tracked = not training or tracked_group == 0
        mean, var = (running_mean, running_var) if tracked else (None, None)
        y = F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
    else:
        parts = []
        for group, part in enumerate(x.chunk(groups)):
            mean, var = (running_mean, running_var) if group == tracked_group else (None, None)
            parts.append(F.batch_norm(part, mean, var, weight, bias, training, momentum, eps))
        y = torch.cat(parts)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y
