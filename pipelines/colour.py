"""The colour jitter in DALI: brightness, contrast about the mean grey, and saturation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvidia.dali import fn, types

from . import draws

Node = Any
"""A nvidia.dali DataNode."""


def jitter(images: Node, inputs: Mapping[str, Node], cuda: bool) -> Node:
    """Brightness, contrast and saturation in each image's own order, clamped and rounded after each."""
    for place in range(len(draws.JITTER)):
        operation = inputs[f"order{place}"]
        # An `if` on a node sends each image of the batch its own way (DALI's conditional execution).
        if operation == 0:
            images = fn.brightness(images, brightness=inputs["brightness"])
        elif operation == 1:
            images = contrast(images, inputs["contrast"], cuda)
        else:
            images = fn.saturation(images, saturation=inputs["saturation"])
    return images


def contrast(images: Node, factor: Node, cuda: bool) -> Node:
    """Contrast about the image's mean grey, uint8 [H, W, 3]."""
    mean = mean_grey(images)
    if cuda:
        return blend(images, mean, factor.gpu())
    return fn.contrast(images, contrast=factor, contrast_center=mean)


def mean_grey(images: Node) -> Node:
    """Mean of the grey image in levels, a float32 scalar, on the images' device."""
    grey = fn.color_space_conversion(
        images, image_type=types.DALIImageType.RGB, output_type=types.DALIImageType.GRAY
    )
    return fn.reductions.mean(grey)


def blend(images: Node, mean: Node, factor: Node) -> Node:
    """The images blended with their mean, factor * images + (1 - factor) * mean, rounded, clamped, as uint8.

    The same as `fn.contrast`, whose arguments must come from the CPU: a mean that was computed on the GPU
    cannot be one.
    """
    return fn.cast(images * factor + mean * (1 - factor), dtype=types.DALIDataType.UINT8)
