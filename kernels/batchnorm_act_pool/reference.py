"""Batch norm, ReLU and max-pool in plain PyTorch: the specification of the fused operation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..batchnorm_act.reference import batch_norm_act


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
) -> Tensor:
    """max_pool(relu(batch_norm(x))) with windows of 3x3, stride 2 and padding 1.

    Arguments and result as in `op.batch_norm_act_pool`; float64 works too.
    """
    y = batch_norm_act(
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
    return F.max_pool2d(y, kernel_size=3, stride=2, padding=1)
