"""The subnets of one training step, drawn from a space by counter-based random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..randomness import Stream, generator
from .spaces import OrderedSpace, Space
from .subnet import Subnet


class Window(NamedTuple):
    """A rectangle in an image, pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Draw:
    """The subnets of one step.

    Attributes:
        subnets: the drawn subnets.
        weights: each one's weight in the loss; their sum is K.
        sizes: the side of each subnet's input, pixels, where inputs are made on the device; else empty.
        main_sizes: the sides that the whole batch is resized to before all, one after the other.
        windows: what each cascaded input is cropped from the one before, where it is (`cascade` crop).
    """

    subnets: tuple[Subnet, ...] = ()
    weights: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    main_sizes: tuple[int, ...] = ()
    windows: tuple[Window, ...] = ()


def draw_subnets(space: Space, count: int, *, coupled: bool, seed: int, epoch: int, step: int) -> Draw:
    """K = `count` independent subnets, or a coupled draw of the same expected loss (see `draw_coupled`)."""
    rng = generator(seed, Stream.SUBNETS, epoch, step)
    if coupled and count:
        assert isinstance(space, OrderedSpace), (
            "the configuration allows coupled draws in ordered spaces alone"
        )
        subnets = space.draw_coupled(rng)
    else:
        subnets = [space.draw(rng) for _ in range(count)]
    return Draw(tuple(subnets), (count / len(subnets),) * len(subnets) if subnets else ())


def sample_distinct(space: Space, count: int, seed: int) -> list[Subnet]:
    """`count` different subnets of a space (all of it where it has fewer), in a fixed order."""
    rng = generator(seed, Stream.SUBNET_SAMPLE)
    if isinstance(space, OrderedSpace):
        every = list(space)
        chosen = rng.choice(len(every), size=min(count, len(every)), replace=False)
        return [every[i] for i in np.sort(chosen)]
    subnets: dict[Subnet, None] = {}
    while len(subnets) < min(count, len(space)):
        subnets.setdefault(space.draw(rng))
    return sorted(subnets)
