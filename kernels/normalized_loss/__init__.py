"""The loss of one stimulative training step: main cross-entropy and each subnet's (normalized) KL."""

from .reference import StimulativeLoss, normalize_logits, stimulative_loss

__all__ = ["StimulativeLoss", "normalize_logits", "stimulative_loss"]
