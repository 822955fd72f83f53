"""Batch norm, residual addition and ReLU in one operation, for channels_last activations."""

from .op import batch_norm_act, batch_statistics

__all__ = ["batch_norm_act", "batch_statistics"]
