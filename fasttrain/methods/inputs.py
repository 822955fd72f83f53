"""Where subnets get their images from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..pipelines import draws, windows
from ..randomness import Stream, generator
from ..subnets import Window

MIN_AREA = 0.08
"""Least share of a batch's area in the random resized crops of cascaded inputs (torchvision's default)."""


def cascade(
    images: Tensor,
    sizes: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    kind: str = "resize",
    crops: Sequence[Window] = (),
) -> list[Tensor]:
    """The published code's inputs: each made from the one before, and normalized once more.

    `--Snet_Dtrans` of NIPS22-ST's train.py overwrites its input with
    Normalize(mean, std)(Resize((s, s), antialias=False)(input)) for each subnet, so that subnet k's images
    have been through k resizes and k + 1 normalizations. Its Dtrans4 aligns the corners and does not
    normalize (`interpolate`); its Dtrans15 crops first (`crop`).

    Args:
        images: the normalized full-size batch [B, 3, H, W].
        sizes: side of each subnet's input, pixels.
        mean: of each channel, 0-1 scale.
        std: of each channel, 0-1 scale.
        kind: `method.cascade`.
        crops: with `crop`, what each input is made from, in the one before.

    Returns:
        One batch [B, 3, s, s] per size.
    """
    shift = torch.tensor(mean, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
    scale = torch.tensor(std, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
    inputs = []
    for index, size in enumerate(sizes):
        if kind == "crop":
            top, left, height, width = crops[index]
            images = images[..., top : top + height, left : left + width]
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=kind == "interpolate")
        if kind != "interpolate":
            images = (images - shift) / scale
        inputs.append(images)
    return inputs


def draw_main_sizes(pairs: Sequence[int], *, seed: int, epoch: int, step: int) -> tuple[int, ...]:
    """One side between each pair's lowest and highest (`method.main_resizes`), pixels."""
    rng = generator(seed, Stream.MAIN_SIZES, epoch, step)
    return tuple(int(rng.integers(low, high + 1)) for low, high in zip(pairs[::2], pairs[1::2], strict=True))


def draw_windows(sides: Sequence[int], *, seed: int, epoch: int, step: int) -> tuple[Window, ...]:
    """The windows of torchvision's RandomResizedCrop in square images of these sides, one in each."""
    rng = generator(seed, Stream.CROPS, epoch, step)
    numbers = draws.resized_crops(rng.random((len(sides), draws.CROP_UNIFORMS)), MIN_AREA)
    corners, extents = windows.random_resized([np.array([side, side, 3]) for side in sides], list(numbers))
    return tuple(
        Window(*map(int, (*corner, *extent))) for corner, extent in zip(corners, extents, strict=True)
    )


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
