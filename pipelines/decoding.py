"""How training decodes: what the graphs, the check and the search for a bad image ask of DALI."""

from __future__ import annotations

from typing import Any

from nvidia.dali import fn

from fasttrain.config import Data

from . import windows

Node = Any
"""A nvidia.dali DataNode."""


def decode(encoded: Node, data: Data, mixed: bool = False, window: tuple[Node, Node] | None = None) -> Node:
    """RGB images, uint8 [H, W, 3], in the stored orientation; only the window (corner, size) if given.

    `mixed`: by the CPU and the GPU, onto the GPU.
    """
    options = decoder_options(data, mixed)
    if window is None:
        return fn.decoders.image(encoded, **options)
    corner, size = window
    return fn.decoders.image_slice(encoded, start=corner, shape=size, axis_names="HW", **options)


def decoder_options(data: Data, mixed: bool) -> dict[str, Any]:
    """What DALI's decoders are told, on the CPU or with the GPU."""
    if not mixed:
        return {"device": "cpu", "adjust_orientation": False}
    width, height = data.largest_image
    return {
        "device": "mixed",
        "adjust_orientation": False,
        "hw_decoder_load": data.hardware_decoder_load,
        "device_memory_padding": data.decoder_memory << 20,
        "host_memory_padding": data.decoder_memory << 19,
        "preallocate_width_hint": width,
        "preallocate_height_hint": height,
    }


def shapes(encoded: Node) -> Node:
    """Height, width and channels of encoded images, int64 [3], in the stored orientation."""
    return fn.peek_image_shape(encoded, adjust_orientation=False)


def random_windows(encoded: Node, crop: Node) -> tuple[Node, Node]:
    """Corners and sizes of random resized crops, int32 [2], by `draws.augmentation`'s `crop`."""
    corner, size = python(windows.random_resized, 2, shapes(encoded), crop)
    return corner, size


def python(function: Any, outputs: int, *nodes: Node, **options: Any) -> list[Node]:
    """A numpy function of a batch inside the graph: lists of arrays in, a tuple of lists of arrays out."""
    result: Node = fn.python_function(
        *nodes, function=function, num_outputs=outputs, batch_processing=True, **options
    )
    return [result] if outputs == 1 else list(result)
