"""What a subnet is: the residual blocks it runs, in order."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias


class Part(IntEnum):
    """How much of a residual block runs."""

    WHOLE = 0
    """Residual branch and shortcut, as in the network."""
    BRANCH = 1
    """The residual branch alone (Veit et al. 2016, unraveled view)."""
    SHORTCUT = 2
    """The shortcut alone."""


class BlockRef(NamedTuple):
    """One residual block of a network."""

    stage: int
    block: int
    part: Part = Part.WHOLE


Subnet: TypeAlias = tuple[BlockRef, ...]
"""A subnet: the blocks it runs between stem and head."""

Depths: TypeAlias = tuple[int, ...]
"""An ordered subnet, by the number of first blocks kept in each stage."""


def ordered_subnet(depths: Sequence[int]) -> Subnet:
    """The subnet that keeps the first `depths[i]` blocks of stage i (ST section 4.1, ordered sampling)."""
    return tuple(BlockRef(stage, block) for stage, depth in enumerate(depths) for block in range(depth))


def depths_of(subnet: Subnet, stages: int) -> Depths:
    """Blocks that a subnet runs in each of `stages` stages."""
    return tuple(sum(ref.stage == stage for ref in subnet) for stage in range(stages))
