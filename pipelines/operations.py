"""The operations of augmentation policies, and random erasing, in DALI: all driven by drawn numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, types

from fasttrain.config import Data

from . import colour, erasing, policies

Node = Any
"""A nvidia.dali DataNode."""

CUTOUT_FILL = (125.0, 123.0, 114.0)
"""The colour of cut squares (DeVries and Taylor 2017 as AutoAugment and its kin have it), levels."""

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_SAME = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)


def apply_policy(images: Node, inputs: Mapping[str, Node], data: Data, cuda: bool) -> Node:
    """Each image's operations, one after the other, driven by `policies.draw`'s numbers."""
    for place in range(policies.places(data)):
        own = {
            name.removesuffix(str(place)): node for name, node in inputs.items() if name.endswith(str(place))
        }
        own["fill"] = data.policy_fill
        images = one_of(policies.kinds(data), images, own["kind"], own, cuda)
    return images


def erase(images: Node, inputs: Mapping[str, Node], data: Data, fill: Node) -> Node:
    """Random erasing by `erasing.draw`'s numbers: boxes that become 0, or noise, when they are normalized.

    Args:
        images: in levels, uint8 or float32 [H, W, 3].
        inputs: the graph's.
        data: what the boxes show, and the noise's moments.
        fill: [3], the levels that normalization makes 0.
    """
    if inputs["erased"] == 1:
        if data.erase_fill == "mean":
            images = _fill(images, inputs, fill)
        else:
            images = _fill(images, inputs, 0.0) + _noise(inputs, data, images.device)
    return images


def _fill(images: Node, inputs: Mapping[str, Node], value: Any) -> Node:
    corner, extent = (
        fn.cast(inputs[name], dtype=types.DALIDataType.FLOAT) for name in ("erase_corner", "erase_extent")
    )
    return fn.erase(images, anchor=corner, shape=extent, axis_names="HW", fill_value=value)


def _noise(inputs: Mapping[str, Node], data: Data, device: str) -> Node:
    """Noise in the box, 0 around it, uint8 [H, W, 3]."""
    sheet = types.Constant(erasing.noise_sheet(data), layout="HWC", device=device)
    patch = fn.slice(sheet, start=inputs["erase_from"], shape=inputs["erase_extent"], axis_names="HW")
    return fn.slice(
        patch,
        start=-inputs["erase_corner"],
        shape=[data.crop, data.crop],
        axis_names="HW",
        out_of_bounds_policy="pad",
    )


def one_of(kinds: Sequence[str], images: Node, kind: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    """Sends each image to the operation of its kind, by halves: the batch is split log2(kinds) times."""
    if len(kinds) == 1:
        return _OPERATIONS[kinds[0]](images, numbers, cuda)
    half = len(kinds) // 2
    if kind < policies.KINDS.index(kinds[half]):
        images = one_of(kinds[:half], images, kind, numbers, cuda)
    else:
        images = one_of(kinds[half:], images, kind, numbers, cuda)
    return images


def _identity(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    return images


def _warp(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    return fn.warp_affine(images, matrix=numbers["matrix"], fill_value=numbers["fill"])


def _brightness(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    return fn.brightness(images, brightness=numbers["amount"])


def _contrast(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    return colour.contrast(images, numbers["amount"], cuda)


def _colour(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    return colour.saturation(images, numbers["amount"], cuda)


def _sharpness(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    """PIL's, but for the outermost pixels, which PIL leaves alone."""
    kernel = numbers["amount"] * types.Constant(_SAME - _SMOOTH) + types.Constant(_SMOOTH)
    return fn.filter(images, kernel.gpu() if cuda else kernel)


def _posterize(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    mask = fn.cast(numbers["amount"], dtype=types.DALIDataType.UINT8)
    return images & (mask.gpu() if cuda else mask)


def _solarize(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    inverted = images >= (numbers["amount"].gpu() if cuda else numbers["amount"])
    return images ^ (
        inverted * types.Constant(255, dtype=types.DALIDataType.UINT8)
    )  # 255 - x, where it is inverted


def _solarize_add(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    shift = fn.cast(numbers["amount"], dtype=types.DALIDataType.UINT8)
    return images + (images < 128) * (shift.gpu() if cuda else shift)


def _autocontrast(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    """Each channel stretched to 0-255; a channel of one value stays."""
    low = fn.reductions.min(images, axis_names="HW", keep_dims=True)
    span = fn.reductions.max(images, axis_names="HW", keep_dims=True) - low
    stretched = (images - low * (span > 0)) * (255.0 / (span + 255 * (span == 0)))
    return fn.cast_like(stretched, images)


def _equalize(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    return fn.equalize(images)


def _blur(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    return fn.gaussian_blur(images, sigma=numbers["amount"])


def _cutout(images: Node, numbers: Mapping[str, Node], cuda: bool) -> Node:
    return fn.erase(
        images,
        anchor=numbers["corner"],
        shape=numbers["extent"],
        axis_names="HW",
        normalized=True,
        fill_value=CUTOUT_FILL,
    )


_OPERATIONS: dict[str, Callable[[Node, Mapping[str, Node], bool], Node]] = {
    "identity": _identity,
    "warp": _warp,
    "brightness": _brightness,
    "contrast": _contrast,
    "colour": _colour,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "blur": _blur,
    "cutout": _cutout,
}
