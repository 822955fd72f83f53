"""What every training loader hands over."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's share of a step."""

    images: torch.Tensor
    """[B, 3, crop, crop], channels_last, normalized, of the dtype and on the device asked for."""
    small: tuple[torch.Tensor, ...]
    """R tensors [B, 3, s, s], channels_last: the same augmented crops, downscaled; empty if R is 0."""
    targets: torch.Tensor
    """int64 [B], the classes."""
