"""The 1x1 convolution of a normalized input in plain PyTorch: the specification of the fused operation.

Axes: N images, C channels (Cin, Cout), H height, W width, G groups of N/G images each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..batchnorm_act.reference import moments, normalize


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
        x = F.relu(normalize(x, *norm, training=training))
    y = F.conv2d(x, conv_weight.to(x.dtype), stride=stride)
    if not statistics:
        return y, None, None
    return y, *moments(y.detach(), groups)
