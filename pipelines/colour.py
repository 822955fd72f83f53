"""The colour jitter in DALI: brightness, contrast about the mean grey, and saturation; exact or folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
            images = saturation(images, inputs["saturation"], cuda)
    return images


def fold(
    batches: Sequence[Node], inputs: Mapping[str, Node], mean: Node, cuda: bool
) -> tuple[list[Node], Node]:
    """The jitter as one affine map per image, without clamps; the three operations commute then.

    It is b * (c * (s * x + (1 - s) * grey(x)) + (1 - c) * mean grey), of which `color_twist` computes all but
    that it has 128 for the mean grey.

    Args:
        batches: uint8 [H, W, 3] images, and smaller copies of them.
        inputs: factors of brightness, contrast and saturation.
        mean: [3], what the normalization will subtract.
        cuda: whether the images are on the GPU.

    Returns:
        float32 images in levels, and the mean to subtract from them.
    """
    brightness, factor = inputs["brightness"], inputs["contrast"]
    twisted = [
        fn.color_twist(
            images,
            brightness=brightness,
            contrast=factor,
            saturation=inputs["saturation"],
            dtype=types.DALIDataType.FLOAT,
        )
        for images in batches
    ]
    share, grey = brightness * (1 - factor), mean_grey(batches[0]) - 128
    if cuda:  # a pass of its own: a normalization's mean must come from the CPU
        shift = share.gpu() * grey
        return [images + shift for images in twisted], mean
    return twisted, mean - share * grey


def saturation(images: Node, factor: Node, cuda: bool) -> Node:
    """Each pixel blended with its grey, uint8 [H, W, 3]."""
    if cuda:
        return fn.saturation(images, saturation=factor)
    # The same bits in three quarters of the time: DALI rounds slowly within linear maps on a CPU.
    unrounded = fn.saturation(images, saturation=factor, dtype=types.DALIDataType.FLOAT)
    return fn.cast(unrounded, dtype=types.DALIDataType.UINT8)


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
