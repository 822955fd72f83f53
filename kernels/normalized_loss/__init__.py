"""The loss of one stimulative training step: main cross-entropy and each subnet's (normalized) KL."""

from .checks import Normalization, Supervision
from .op import IN_TRITON, implementation, stimulative_loss
from .reference import StimulativeLoss, normalize_logits

__all__ = [
    "IN_TRITON",
    "Normalization",
    "StimulativeLoss",
    "Supervision",
    "implementation",
    "normalize_logits",
    "stimulative_loss",
]
