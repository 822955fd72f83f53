"""Where to crop: windows and sizes from the images' heights and widths, for a whole batch at a time.

These run inside the DALI graph, on the small arrays that carry the images' shapes; a position is a number in
[0, 1) that picks one of the possible window corners. They take and return lists of one array per image, as
DALI hands them over and wants them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .draws import RATIO, TRIES

Arrays = list[NDArray[Any]]


def random_resized(shapes: Arrays, draws: Arrays) -> tuple[Arrays, Arrays]:
    """The windows of torchvision's RandomResizedCrop: the first try that fits, else a centre crop.

    Args:
        shapes: int64 [3], height, width and channels of each image.
        draws: float32 [22], `draws.augmentation`'s `crop` of each image.

    Returns:
        int32 [2] corners (top, left) and int32 [2] sizes (height, width).
    """
    image = _stack(shapes)[:, :2]
    numbers = _stack(draws)
    side = np.sqrt(image.prod(axis=1, keepdims=True))
    widths = np.rint(numbers[:, :TRIES] * side)
    heights = np.rint(numbers[:, TRIES : 2 * TRIES] * side)
    fits = (widths > 0) & (widths <= image[:, 1:]) & (heights > 0) & (heights <= image[:, :1])
    row, first = np.arange(len(image)), fits.argmax(axis=1)
    found = fits[row, first, None]
    size = np.where(found, np.stack([heights[row, first], widths[row, first]], axis=1), _widest(image))
    free = image - size
    corner = np.where(found, np.floor(numbers[:, 2 * TRIES :] * (free + 1)), free // 2)
    # float32 positions just under 1 can round up to the corner after the last one
    return _unstack(np.minimum(corner, free)), _unstack(size)


def _widest(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest centre crops whose width over height is within RATIO, [B, 2]."""
    height, width = image[:, 0], image[:, 1]
    low, high = RATIO
    return np.stack(
        [np.minimum(height, np.rint(width / low)), np.minimum(width, np.rint(height * high))], axis=1
    )


def padded(padding: int, crop: int, shapes: Arrays, positions: Arrays) -> tuple[Arrays]:
    """Corners int32 [2] of random windows of side `crop` in images padded by `padding` on each side.

    Coordinates are the unpadded image's: negative ones are in the padding.
    """
    free = _stack(shapes)[:, :2] + 2 * padding - crop
    return (_unstack(np.minimum(np.floor(_stack(positions) * (free + 1)), free) - padding),)


def centre(resize: int, crop: int, shapes: Arrays) -> tuple[Arrays, Arrays]:
    """Resize the shorter side to `resize`, centre crop of `crop`, rounded as torchvision does.

    Returns:
        float32 [2] sizes (height, width) after the resize; float32 [2] positions of the crop, 0-1 of the
        room that it has (vertical, horizontal).
    """
    image = _stack(shapes)[:, :2]
    shorter = image.min(axis=1, keepdims=True)
    # torchvision truncates the longer side
    size = np.floor(resize * image / shorter)
    free = size - crop
    position = np.rint(free / 2) / np.maximum(free, 1)
    return _unstack(size, np.float32), _unstack(position, np.float32)


def _stack(arrays: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    return np.stack(arrays).astype(np.float64)


def _unstack(values: NDArray[np.float64], dtype: type[Any] = np.int32) -> Arrays:
    return list(values.astype(dtype))
