"""Random numbers that a device draws itself: what a pass drops."""

from __future__ import annotations

import torch

from ..randomness import Stream, generator


def device_generator(
    device: torch.device, seed: int, stream: Stream, *, epoch: int, step: int, rank: int, part: int
) -> torch.Generator | None:
    """A device's generator for one purpose, for a part of one process's batch; None of meta tensors.

    Its numbers differ from one kind of device to another.
    """
    if device.type == "meta":
        return None
    counter = generator(seed, stream, epoch, step)
    counter.bit_generator.advance(rank * 2**32 + part)  # type: ignore[attr-defined]
    return torch.Generator(device).manual_seed(int(counter.integers(2**63)))
