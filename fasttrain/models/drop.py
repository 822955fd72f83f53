"""More drop in one pass of a network: masked patches, dropout, drop-path.

The sub-model of AugSub (Heo et al. 2023) is the main network in such a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .staged import StagedNetwork

DropKind = Literal["masking", "dropout", "path"]

PATHS = ("drop_path", "drop_path1", "drop_path2")
"""Where timm's blocks call what drops a residual branch; None or an identity where it is off."""
_DROPOUTS = ("proj_drop", "drop", "drop1", "drop2")


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Squares of an image's pixels, some of which a pass sees.

    Attributes:
        kept: of each image the squares that stay, int64 [B, n], numbered row by row.
        square: side of a square, pixels; the last of a row or column may reach over the edge.
        height: of the images, pixels.
        width: of the images, pixels.
        token: what a transformer that learns one has in place of hidden tokens, [1, 1, 1, C].
    """

    kept: Tensor
    square: int
    height: int
    width: int
    token: Tensor | None = None

    def visible(self, rows: int, columns: int) -> Tensor:
        """What stays, bool [B, rows, columns]: of the images' pixels, or of tokens laid over them."""
        down, across = (-(-side // self.square) for side in (self.height, self.width))
        squares = torch.zeros(len(self.kept), down * across, dtype=torch.bool, device=self.kept.device)
        squares = squares.scatter(1, self.kept, True).view(-1, down, across)
        row = torch.arange(rows, device=self.kept.device) * self.height // rows // self.square
        column = torch.arange(columns, device=self.kept.device) * self.width // columns // self.square
        return squares[:, row][:, :, column]


@dataclass(frozen=True, slots=True, eq=False)
class Drop:
    """What a pass has more of.

    Attributes:
        mask: of what the stem makes of the images; None: all of it stays.
        kind: `dropout` (each element after attention and within the MLP), `path` (each image's residual
            branches), or `masking`: nothing within the blocks.
        rate: probability of being dropped, in place of the network's own.
        rising: whether the l-th of L blocks has l / L of this rate, not all of it.
        generator: of what is dropped.
    """

    kind: DropKind
    mask: Mask | None = None
    rate: float = 0.0
    rising: bool = False
    generator: torch.Generator | None = None

    @property
    def kept(self) -> int:
        """Squares of each image that a mask keeps; 0: there is none."""
        return self.mask.kept.shape[1] if self.mask else 0

    @contextmanager
    def within(self, network: StagedNetwork) -> Iterator[None]:
        """The blocks drop as this says."""
        if self.kind == "masking":
            yield
            return
        blocks = [block for stage in network.stages for block in stage]
        own = []
        for index, block in enumerate(blocks, start=1):
            rate = self.rate * index / len(blocks) if self.rising else self.rate
            noise = _Noise(rate, self.generator, whole=self.kind == "path")
            for parent, name in list(_places(block, self.kind)):
                own.append((parent, name, getattr(parent, name)))
                setattr(parent, name, noise)
        try:
            yield
        finally:
            for parent, name, module in own:
                setattr(parent, name, module)


class _Noise(nn.Module):
    """Sets elements, or whole images, to zero at random and scales the others up."""

    def __init__(self, rate: float, generator: torch.Generator | None, *, whole: bool) -> None:
        super().__init__()
        self.keep, self.generator, self.whole = 1 - rate, generator, whole

    def forward(self, x: Tensor) -> Tensor:
        shape = (len(x), *(1,) * (x.ndim - 1)) if self.whole else x.shape
        kept = x.new_empty(shape).bernoulli_(self.keep, generator=self.generator)
        return x * kept.div_(self.keep)


def kinds_of_drop(network: StagedNetwork) -> list[DropKind]:
    """How a network's passes can drop: by masking, and where all blocks have places for them the others."""
    kinds: list[DropKind] = ["path", "dropout"]
    return ["masking", *(kind for kind in kinds if _is_everywhere(network, kind))]


def _is_everywhere(network: StagedNetwork, kind: DropKind) -> bool:
    return all(any(True for _ in _places(block, kind)) for stage in network.stages for block in stage)


def _places(block: nn.Module, kind: DropKind) -> Iterator[tuple[nn.Module, str]]:
    """Where a block drops: modules, and the names of their drop-paths or dropouts; some are None."""
    if kind == "dropout" and not any(hasattr(module, "proj_drop") for module in block.modules()):
        return  # no transformer's
    for module in block.modules():
        for name in PATHS if kind == "path" else _DROPOUTS:
            if isinstance(getattr(module, name, 0), nn.Module | None):
                yield module, name
