"""The stem's batch norm, ReLU and 3x3 max-pool in one operation, for channels_last activations."""

from .op import batch_norm_act_pool

__all__ = ["batch_norm_act_pool"]
