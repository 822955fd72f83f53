"""Where subnets get their images from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cascade(
    images: Tensor, sizes: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> list[Tensor]:
    """The published code's inputs: each resized from the one before, and normalized once more.

    `--Snet_Dtrans` of NIPS22-ST's train.py overwrites its input with
    Normalize(mean, std)(Resize((s, s), antialias=False)(input)) for each subnet, so that subnet k's images
    have been through k resizes and k + 1 normalizations.

    Args:
        images: the normalized full-size batch [B, 3, H, W].
        sizes: side of each subnet's input, pixels.
        mean: of each channel, 0-1 scale.
        std: of each channel, 0-1 scale.

    Returns:
        One batch [B, 3, s, s] per size.
    """
    shift = torch.tensor(mean, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
    scale = torch.tensor(std, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
    inputs = []
    for size in sizes:
        images = (F.interpolate(images, (size, size), mode="bilinear", align_corners=False) - shift) / scale
        inputs.append(images)
    return inputs


def deal(count: int, hands: Sequence[Tensor]) -> list[tuple[Tensor, list[int]]]:
    """Deal subnets 0 .. count - 1 over downscaled batches in turn; batches of equal size hold equal images
    and are merged.

    Returns:
        Pairs of a batch and the subnets that read it; batches without a subnet are left out.
    """
    by_size: dict[torch.Size, tuple[Tensor, list[int]]] = {}
    for subnet in range(count):
        batch = hands[subnet % len(hands)]
        by_size.setdefault(batch.shape, (batch, []))[1].append(subnet)
    return list(by_size.values())
