"""How many images a GPU can hold in one step."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from fasttrain.errors import OutOfMemoryError

LEAST, MOST = 2, 8192
"""Batches that are tried."""


def largest_batch(holds: Callable[[int], bool]) -> int:
    """The largest power of two from `LEAST` to `MOST` that `holds` accepts, doubling from the least.

    Raises:
        OutOfMemoryError: not even the least.
    """
    batch = LEAST
    if not holds(batch):
        raise OutOfMemoryError(f"not even {LEAST} images fit into the device's memory")
    while batch < MOST and holds(2 * batch):
        batch *= 2
    return batch


def fits(call: Callable[[], object]) -> bool:
    """Whether a call ends without running out of the device's memory, which is given back either way."""
    try:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
