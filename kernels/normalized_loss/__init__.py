"""The loss of one stimulative training step: main cross-entropy and each subnet's (normalized) KL."""

from .checks import MainLoss, Normalization, Supervision
from .op import IN_TRITON, implementation, stimulative_loss
from .reference import StimulativeLoss, binary_cross_entropy, normalize_logits

__all__ = [
    "IN_TRITON",
    "MainLoss",
    "Normalization",
    "StimulativeLoss",
    "Supervision",
    "binary_cross_entropy",
    "implementation",
    "normalize_logits",
    "stimulative_loss",
]
