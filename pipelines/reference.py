"""What an image's pixels are by Pillow, to hold DALI's against: RGB, 8 bits, as training takes images.

Where programs differ by right, training does what DALI does, and so does this:

- orientation: as stored, whatever EXIF or TIFF tags say;
- alpha: dropped, not composited;
- 16 bits: scaled to 8, as floats from 0 to 1 are; other floats are refused;
- animations and pages: the first.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TOLERANCE = 4.0
"""Levels of 255 that the pixels of a row may be apart on average."""

_ORIENTATION = 0x0112  # of EXIF and of TIFF
_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Undoes each orientation that is not 1."""
_SIDEWAYS = (5, 6, 7, 8)
_COMPRESSION, _PHOTOMETRIC, _TILE = 259, 262, (322, 323)  # tags of TIFF
_JPEG, _YCBCR = 7, 6
_KNOWN_TAGS = {
    258: {8, 16},  # bits
    _COMPRESSION: {1, 5, _JPEG, 8, 32773, 32946},  # none, LZW, JPEG, deflate, PackBits, deflate
    _PHOTOMETRIC: {1, 2, 3, _YCBCR},  # grey, RGB, palette
    266: {1},  # the first bit is the highest
    284: {1},  # the colours of a pixel lie together
    339: {1},  # unsigned
}
"""TIFFs that DALI's own decoder knows: the values of their tags, where they have them."""
_LEVELS_OF_16_BITS = 257


class UnfitPixelsError(ValueError):
    """Pixels that are no levels of a colour; the message is to be read after the image's path."""


@contextmanager
def opened(image: bytes | str) -> Iterator[Image.Image]:
    """An image, encoded or in a file, by Pillow, without warnings of odd headers and harmless sizes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as found:
            yield found


def is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether it is a JPEG or PNG of the common kinds, which DALI and Pillow decode by the same library."""
    if image.format in ("JPEG", "MPO"):
        return image.mode in ("RGB", "L")
    # depth and colour type of a PNG's header: 8 bits, grey or RGB
    common = image.format == "PNG" and data[24:26] in (b"\x08\x00", b"\x08\x02")
    return common and not getattr(image, "is_animated", False) and "transparency" not in image.info


def orientation(image: Image.Image) -> int:
    """EXIF's or TIFF's, 1 to 8; to be asked before the image is loaded, which can turn it."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data does no harm to the image
        return 1
    return value if value in range(1, 9) else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as stored; to be asked before the image is loaded."""
    width, height = image.size
    return (height, width) if _tag(image) in _SIDEWAYS else (width, height)


def cannot_be_stored(image: Image.Image) -> str:
    """What is wrong with a TIFF that DALI turns, and writes over memory as it does; empty: nothing.

    DALI's own TIFF decoder takes pixels as stored. What it does not know it hands to a second one, which
    turns them although told not to, into memory laid out for the stored ones.
    """
    turned = _tag(image)
    if turned not in _SIDEWAYS or _is_known_to_the_first(image.tag_v2):  # type: ignore[attr-defined]
        return ""
    return f"is a TIFF that its orientation tag ({turned}) turns, of a kind that cannot be decoded as stored"


def _is_known_to_the_first(tags: Mapping[int, Any]) -> bool:
    usual = all(
        set(np.atleast_1d(tags[tag]).tolist()) <= values for tag, values in _KNOWN_TAGS.items() if tag in tags
    )
    coded = tags.get(_PHOTOMETRIC) == _YCBCR
    tiles = all(tags.get(tag, 16) % 16 == 0 for tag in _TILE)
    return usual and tiles and (not coded or tags.get(_COMPRESSION) == _JPEG)


def stored_pixels(data: bytes) -> NDArray[np.uint8]:
    """An encoded image's pixels, [H, W, 3].

    Raises:
        UnfitPixelsError: floats that are no levels.
        Exception: whatever Pillow's readers raise of a damaged file.
    """
    with opened(data) as image:
        turned = (
            orientation(image) if image.format == "TIFF" else 1
        )  # Pillow turns no others as it loads them
        image.load()
        stored = image.transpose(_BACK[turned]) if turned in _BACK else image
        if stored.mode == "F":
            return _rgb(255 * _unit(np.asarray(stored)))
        if stored.mode.startswith("I"):
            return _rgb(np.asarray(stored, np.float64) / _LEVELS_OF_16_BITS)
        return np.asarray(stored.convert("RGB"))


def apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """How far two images [H, W, 3] are from each other: levels, the mean of the row that differs most."""
    # row by row, since images are large
    rows = (one[row].astype(np.int16) - other[row] for row in range(len(one)))
    return max(float(np.abs(row).mean()) for row in rows)


def _tag(image: Image.Image) -> int:
    """A TIFF's orientation tag; 1 of all else."""
    return image.tag_v2.get(_ORIENTATION, 1) if image.format == "TIFF" else 1  # type: ignore[attr-defined]


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise UnfitPixelsError(f"has float pixels from {low:g} to {high:g}; allowed: 0 to 1")
    return values


def _rgb(levels: NDArray[np.float64] | NDArray[np.float32]) -> NDArray[np.uint8]:
    grey = np.rint(levels).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
