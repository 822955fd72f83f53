"""The DALI graphs: from encoded images and per-image random numbers to normalized batches.

Everything random comes in through the inputs; the graphs themselves hold no state. Image shapes and
windows are on the CPU; on CUDA the images are decoded by `mixed` operators and stay on the GPU, except
small ones, which are decoded and cropped on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from nvidia.dali import fn, types

from fasttrain.config import Data

from . import colour, resize, windows
from .decoding import Node, decode, python, random_windows
from .decoding import shapes as _shapes
from .operations import apply_policy, erase

_LINEAR = types.DALIInterpType.INTERP_LINEAR
_DTYPES = {torch.float32: types.DALIDataType.FLOAT, torch.float16: types.DALIDataType.FLOAT16}


def train_graph(inputs: Mapping[str, Node], data: Data, dtype: torch.dtype, cuda: bool) -> list[Node]:
    """One training batch.

    Args:
        inputs: `encoded` images and `targets`, `draws.augmentation`'s numbers, and `size0`, `size1`, ...
            (float32 sides of the downscaled batches, equal for all images).
        data: augmentation and normalization.
        dtype: torch.float32 or torch.float16.
        cuda: whether the batch is made on the GPU.

    Returns:
        The full batch, the downscaled ones in the order of their inputs (all HWC), and the targets.
    """
    crop = imagenet_crop if data.augmentation == "imagenet" else _small_crop
    full = crop(inputs, data, cuda)
    if data.policy != "none" and not data.policy_last:
        full = apply_policy(full, inputs, data, cuda)
    if data.jitter and data.colour == "exact":
        full = colour.jitter(full, inputs, cuda)
    if data.lighting and data.published_lighting:
        full = fn.coord_transform(full, M=1.0, T=inputs["lighting"], dtype=types.DALIDataType.UINT8)
    if data.policy != "none" and data.policy_last:
        full = apply_policy(full, inputs, data, cuda)
    mean: Any = types.Constant([255 * value for value in data.mean], dtype=types.DALIDataType.FLOAT)
    if data.lighting and not data.published_lighting:
        mean = mean - inputs["lighting"]
    folded = data.jitter > 0 and data.colour == "folded"
    batches = [full]
    if folded and not data.erase:  # bytes are resized faster than what they are folded into
        batches += _downscaled(full, inputs, data, cuda)
    if folded:
        batches, mean = colour.fold(batches, inputs, mean, cuda)
    if data.erase:
        fill = mean if folded else mean + 0.5  # bytes are cut off, not rounded
        batches = [erase(batches[0], inputs, data, fill)]
    if data.erase or not folded:
        batches += _downscaled(batches[0], inputs, data, cuda)
    mirror = {"mirror": inputs["flip"]} if data.flip else {}
    batches = [_normalize(images, data, dtype, mean=mean, **mirror) for images in batches]
    return [*batches, _to(inputs["targets"], cuda)]


def eval_graph(inputs: Mapping[str, Node], data: Data, dtype: torch.dtype, cuda: bool) -> list[Node]:
    """One evaluation batch from `encoded` images and `targets`: the centre crops (HWC) and the targets."""
    encoded = inputs["encoded"]
    size, position = python(partial(windows.centre, data.val_resize, data.val_crop), 2, _shapes(encoded))
    mixed = cuda and data.augmentation == "imagenet"
    images = decode(encoded, data, mixed)
    images = fn.resize(_to(images, cuda and not mixed), size=size, interp_type=_LINEAR, antialias=True)
    mean = [255 * value for value in data.mean]
    crop = [data.val_crop, data.val_crop]
    images = _normalize(
        images, data, dtype, mean=mean, crop=crop, crop_pos_y=position[0], crop_pos_x=position[1]
    )
    return [images, _to(inputs["targets"], cuda)]


def imagenet_crop(inputs: Mapping[str, Node], data: Data, cuda: bool) -> Node:
    """Random resized crops, uint8 [crop, crop, 3], of `encoded` images by `crop`'s numbers."""
    encoded = inputs["encoded"]
    images = decode(encoded, data, cuda, random_windows(encoded, inputs["crop"]))
    return _resized(images, types.Constant(float(data.crop)), True, cuda)


def _downscaled(images: Node, inputs: Mapping[str, Node], data: Data, cuda: bool) -> list[Node]:
    sides = [node for name, node in inputs.items() if name.startswith("size")]
    return [_resized(images, side, data.antialias, cuda) for side in sides]


def _resized(images: Node, side: Node, antialias: bool, cuda: bool) -> Node:
    """Squares of a side, float32 pixels."""
    if cuda or not antialias:
        return fn.resize(images, resize_x=side, resize_y=side, interp_type=_LINEAR, antialias=antialias)
    (squares,) = python(resize.to_squares, 1, images, side, output_layouts=["HWC"])
    return squares


def _small_crop(inputs: Mapping[str, Node], data: Data, cuda: bool) -> Node:
    images: Node = fn.resize(
        decode(inputs["encoded"], data),
        size=data.crop,
        mode="not_smaller",
        interp_type=_LINEAR,
        antialias=True,
    )
    (corner,) = python(partial(windows.padded, data.padding, data.crop), 1, images.shape(), inputs["crop"])
    shape = [data.crop, data.crop]
    images = fn.slice(images, start=corner, shape=shape, axis_names="HW", out_of_bounds_policy="pad")
    return _to(images, cuda)


def _normalize(images: Node, data: Data, dtype: torch.dtype, **arguments: Any) -> Node:
    std = [255 * value for value in data.std]
    return fn.crop_mirror_normalize(images, std=std, dtype=_DTYPES[dtype], output_layout="HWC", **arguments)


def _to(node: Node, cuda: bool) -> Node:
    return node.gpu() if cuda else node
