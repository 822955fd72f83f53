"""Counter-based random numbers: a function of (seed, purpose, epoch, step) alone.

Nothing has to be saved for a resume, and every rank draws the same without talking to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purposes that must not share random numbers."""

    SUBNETS = 1
    SIZES = 2
    ORDER = 3
    CALIBRATION = 4
    SUBNET_SAMPLE = 5
    AUGMENTATION = 6
    POLICY = 7
    MIXING = 8
    ERASING = 9
    PACKING = 10
    MAIN_SIZES = 11
    CROPS = 12
    ANALYSIS = 13
    DROP = 14
    SURVIVAL = 15


def generator(seed: int, stream: Stream, epoch: int = 0, step: int = 0) -> np.random.Generator:
    """A generator for one purpose at one step (Philox, Salmon et al. 2011).

    Epoch and step sit in the counter's high words: its low words count the numbers that are drawn, so
    that the streams of two steps cannot overlap.
    """
    return np.random.Generator(np.random.Philox(key=[seed, int(stream)], counter=[0, 0, step, epoch]))


def draw_sizes(sizes: Sequence[int], count: int, *, seed: int, epoch: int, step: int) -> tuple[int, ...]:
    """`count` independent sides out of `sizes` for the subnets' inputs of one step, pixels."""
    picks = generator(seed, Stream.SIZES, epoch, step).integers(len(sizes), size=count) if count else ()
    return tuple(sizes[pick] for pick in picks)
