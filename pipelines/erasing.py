"""Random erasing (Zhong et al. 2020): which box of an image is erased, a function of (seed, epoch, step)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasttrain.config import Data
from fasttrain.randomness import Stream, generator

TRIES = 10
"""Tries at a box that fits; without one the image stays as it is (as in torchvision and timm)."""
AREA = (0.02, 1 / 3)
"""Range of a box's share of the image."""
RATIO = (0.3, 1 / 0.3)
"""Range of a box's height over width."""


def draw(data: Data, seed: int, epoch: int, step: int, images: int) -> dict[str, NDArray[Any]]:
    """The boxes of a global batch of B images, by the input of the graph they feed.

    Returns:
        `erased`: int32 [B], 0 or 1; `erase_corner`, `erase_extent`: int32 [B, 2], pixels, vertical first;
        with noise `erase_from`: int32 [B, 2], the corner in the sheet of noise.
    """
    rng = generator(seed, Stream.ERASING, epoch, step)
    chosen = rng.random(images) < data.erase
    area = rng.uniform(*AREA, (images, TRIES))
    low, high = np.log(RATIO)
    ratio = np.exp(rng.uniform(low, high, (images, TRIES)))
    extents = np.rint(data.crop * np.sqrt(np.stack([area * ratio, area / ratio], axis=-1)))
    fits = (extents < data.crop).all(axis=-1) & (extents > 0).all(axis=-1)
    extent = extents[np.arange(images), fits.argmax(axis=1)]
    corner = np.floor(rng.random((images, 2)) * (data.crop - extent + 1))
    numbers = {
        "erased": chosen & fits.any(axis=1),
        "erase_corner": corner,
        "erase_extent": extent,
    }
    if data.erase_fill == "noise":
        numbers["erase_from"] = rng.integers(data.crop + 1, size=(images, 2))
    return {name: values.astype(np.int32) for name, values in numbers.items()}


def noise_sheet(data: Data) -> NDArray[np.uint8]:
    """Levels that normalization makes standard normal, clipped to 0-255: [2 * crop, 2 * crop, 3].

    Always the same; each erased box shows a part of its own.
    """
    normal = generator(0, Stream.ERASING).standard_normal((2 * data.crop, 2 * data.crop, 3), np.float32)
    return np.clip(np.rint(255 * (data.mean + np.array(data.std) * normal)), 0, 255).astype(np.uint8)
