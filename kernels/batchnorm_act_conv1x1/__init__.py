"""Batch norm and ReLU, a 1x1 convolution, and the statistics of its output, in one operation."""

from .op import batch_norm_act_conv1x1
from .reference import Norm

__all__ = ["Norm", "batch_norm_act_conv1x1"]
