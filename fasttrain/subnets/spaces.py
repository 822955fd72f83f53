"""Sampling spaces: which subnets of a network may be drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import ConfigError, instead
from .subnet import BlockRef, Depths, Part, Subnet, ordered_subnet

RESNET50_DEPTHS = (3, 4, 6, 3)
RESNET50_SPACES: dict[str, Depths] = {
    "space1": (2, 2, 2, 2),
    "space2": (2, 2, 1, 1),
    "space3": (3, 3, 3, 3),
    "space4": (3, 3, 2, 2),
    "space5": (3, 4, 4, 3),
    "space6": (3, 3, 3, 2),
    "space7": (3, 2, 2, 3),
}
"""Least number of blocks kept per stage in the published code's `--sample_space` values for ResNet-50.

(ST++, Table 2, numbers space1 and space2 the other way round.)"""

SPACE_FORMS = "default, space1 ... space7 (ResNet-50), min=2, part=0.5, or a list such as 3,3-4,3-6,3"


class Space(Protocol):
    """A finite set of subnets with the uniform distribution."""

    def __len__(self) -> int:
        """How many subnets there are."""

    def draw(self, rng: np.random.Generator) -> Subnet:
        """One subnet, uniformly."""


@dataclass(frozen=True, slots=True)
class OrderedSpace:
    """Ordered residual sampling: of stage i the first `minimum[i]` to `depths[i]` blocks (ST section 4.1)."""

    minimum: Depths
    depths: Depths

    def __len__(self) -> int:
        """The product of the stages' choices."""
        return math.prod(self.choices)

    @property
    def choices(self) -> Depths:
        """How many depths each stage can have."""
        return tuple(full - low + 1 for low, full in zip(self.minimum, self.depths, strict=True))

    def __iter__(self) -> Iterator[Subnet]:
        """Every subnet, shallow stages first."""
        ranges = (range(low, full + 1) for low, full in zip(self.minimum, self.depths, strict=True))
        return map(ordered_subnet, itertools.product(*ranges))

    def draw_depths(self, rng: np.random.Generator) -> Depths:
        """The depths of one subnet, each stage's uniform and independent."""
        return tuple(
            int(rng.integers(low, full + 1)) for low, full in zip(self.minimum, self.depths, strict=True)
        )

    def draw(self, rng: np.random.Generator) -> Subnet:
        """One subnet, uniformly."""
        return ordered_subnet(self.draw_depths(rng))

    def draw_coupled(self, rng: np.random.Generator) -> list[Subnet]:
        """All depths of the last stage that has a choice, the stages before it drawn once.

        Each subnet's marginal distribution is that of `draw`, if the list is averaged over: the expected
        loss and gradient are the same at fewer block calls.
        """
        depths = self.draw_depths(rng)
        free = [stage for stage, count in enumerate(self.choices) if count > 1]
        if not free:
            return [ordered_subnet(depths)]
        last = free[-1]
        every = range(self.minimum[last], self.depths[last] + 1)
        return [ordered_subnet((*depths[:last], depth, *depths[last + 1 :])) for depth in every]


@dataclass(frozen=True, slots=True)
class StochasticSpace:
    """Stochastic residual sampling: any subset of the blocks after each stage's first `minimum[i]`."""

    minimum: Depths
    depths: Depths

    def __len__(self) -> int:
        """Two to the number of droppable blocks."""
        return 2 ** (sum(self.depths) - sum(self.minimum))

    def draw(self, rng: np.random.Generator) -> Subnet:
        """One subnet, uniformly: each droppable block is kept with probability 1/2."""
        return tuple(
            BlockRef(stage, block)
            for stage, (low, full) in enumerate(zip(self.minimum, self.depths, strict=True))
            for block in range(full)
            if block < low or rng.random() < 0.5
        )


@dataclass(frozen=True, slots=True)
class RawSpace:
    """Raw sampling: one path of the unraveled view (Veit et al. 2016), a branch or a shortcut per block.

    Blocks without a shortcut are on every path, whole.
    """

    depths: Depths
    without_shortcut: frozenset[BlockRef] = frozenset()

    def __len__(self) -> int:
        """Two to the number of blocks with a shortcut."""
        return int(2 ** (sum(self.depths) - len(self.without_shortcut)))

    def draw(self, rng: np.random.Generator) -> Subnet:
        """One path, uniformly."""
        return tuple(
            ref
            if ref in self.without_shortcut
            else ref._replace(part=Part.BRANCH if rng.random() < 0.5 else Part.SHORTCUT)
            for ref in ordered_subnet(self.depths)
        )


def ordered_space(spec: str, depths: Sequence[int]) -> OrderedSpace:
    """The ordered space that `spec` names for a network of `depths` blocks per stage.

    Args:
        spec: `default` (1 to all of each stage), `space1` to `space7` (ResNet-50 alone), `min=N` (at least
            N blocks of each stage, or all it has), `part=F` (at least that share of each stage, rounded
            up), or a comma-separated list with one depth or range per stage (`3,3-4,3-6,3`).
        depths: the network's blocks per stage.

    Raises:
        ConfigError: an unknown form, or one that does not fit the network.
    """
    full = tuple(depths)
    if spec == "default":
        return OrderedSpace((1,) * len(full), full)
    if spec in RESNET50_SPACES:
        if full != RESNET50_DEPTHS:
            raise ConfigError(
                f"method.space {spec!r} is defined for {RESNET50_DEPTHS} blocks per stage, this "
                f"network has {full}; allowed: default, min=N, part=F, or a list per stage"
            )
        return OrderedSpace(RESNET50_SPACES[spec], full)
    try:
        return _parse_space(spec, full)
    except ValueError as error:
        detail = f" ({error})" if isinstance(error, ConfigError) else ""
        wrong = f"method.space is {spec!r}{detail}"
        raise ConfigError(f"{wrong}; {instead(spec, _NAMES, forms=SPACE_FORMS)}") from None


_NAMES = ("default", *RESNET50_SPACES)


def _parse_space(spec: str, full: Depths) -> OrderedSpace:
    rule, _, value = spec.partition("=")
    if rule == "min":
        minimum = tuple(min(int(value), depth) for depth in full)
        if int(value) < 1:
            raise ConfigError("each stage keeps at least one block")
        return OrderedSpace(minimum, full)
    if rule == "part":
        if not 0 < float(value) <= 1:
            raise ConfigError("the part is above 0 and at most 1")
        return OrderedSpace(tuple(math.ceil(float(value) * depth - 1e-9) for depth in full), full)
    ranges = [entry.partition("-") for entry in spec.split(",")]
    minimum = tuple(int(low) for low, _, _ in ranges)
    maximum = tuple(int(high or low) for low, _, high in ranges)
    fits = len(ranges) == len(full) and all(
        1 <= low <= high <= depth for low, high, depth in zip(minimum, maximum, full, strict=True)
    )
    if not fits:
        raise ConfigError(f"the network has {full} blocks per stage")
    return OrderedSpace(minimum, maximum)


def sampling_space(
    sampling: str, spec: str, depths: Sequence[int], without_shortcut: frozenset[BlockRef] = frozenset()
) -> Space:
    """The space of one sampling scheme.

    Args:
        sampling: `ordered`, `stochastic` or `raw`.
        spec: see `ordered_space`; `default` with `raw`.
        depths: the network's blocks per stage.
        without_shortcut: its blocks without a shortcut, of which raw sampling takes no part, and which
            stochastic sampling cannot leave out.

    Raises:
        ConfigError: a `spec` that does not fit the network or the scheme, or a scheme that does not fit the
            network.
    """
    if sampling == "raw":
        if len(without_shortcut) == sum(depths):
            raise _undefined(sampling)
        if spec != "default":
            raise ConfigError(f"method.space is {spec!r}; allowed: default with sampling=raw")
        return RawSpace(tuple(depths), without_shortcut)
    space = ordered_space(spec, depths)
    if sampling == "ordered":
        return space
    if space.depths != tuple(depths):
        raise ConfigError(
            f"method.space is {spec!r}; sampling=stochastic needs the full depth of every stage"
        )
    if any(ref.block >= space.minimum[ref.stage] for ref in without_shortcut):
        raise _undefined(sampling)
    return StochasticSpace(space.minimum, space.depths)


def _undefined(sampling: str) -> ConfigError:
    return ConfigError(
        f"method.sampling is {sampling!r}; allowed for a network whose blocks have no shortcuts to stand for "
        "them: ordered"
    )
