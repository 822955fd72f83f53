"""The public face of fused batch norm + ReLU + max-pool, the ResNet stem's.

Axes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor

from ..runtime import Kernels
from . import reference


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
    """max_pool(relu(batch_norm(x))), through the reference for the moment."""
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
