"""What a training method is to the trainer: it plans a step's forward pass, and computes its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple, Protocol

from torch import Tensor

from ..kernels.normalized_loss import StimulativeLoss
from ..models import Drop
from ..subnets import PrefixTree


class Pass(NamedTuple):
    """What a plan runs on one of its inputs, without the input itself.

    Attributes:
        images: how many.
        side: of them, pixels.
        tree: the subnets.
        kept: squares of each image that a mask keeps; 0: there is none.
    """

    images: int
    side: int
    tree: PrefixTree
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The one forward pass of a step.

    Attributes:
        inputs: images [B, 3, H, W], one tensor per tree; the first is the full-size batch.
        trees: what runs on each input; the first subnet of the first tree is the main network.
        places: for each subnet of the draw, its tree and its position there.
        weights: each subnet's weight in the loss.
        trains_main: whether the main network's cross-entropy belongs to the loss; otherwise its logits are
            given, as the only ones of a first tree that does not run.
        drops: what each tree's pass has more of; none where they end.
    """

    inputs: tuple[Tensor, ...]
    trees: tuple[PrefixTree, ...]
    places: tuple[tuple[int, int], ...] = ()
    weights: tuple[float, ...] = ()
    trains_main: bool = True
    drops: tuple[Drop | None, ...] = ()

    def members(self, tree: int) -> list[int]:
        """The subnets of the draw that run in a tree."""
        return [subnet for subnet, (own, _) in enumerate(self.places) if own == tree]

    def parts(self) -> list[Plan]:
        """The main network's pass and each other tree's as plans of their own; their gradients add up.

        Of a plan whose first tree holds the main network alone.
        """
        parts = [Plan(self.inputs[:1], self.trees[:1], drops=self.drops[:1])]
        for tree in range(1, len(self.trees)):
            members = self.members(tree)
            places = tuple((1, self.places[subnet][1]) for subnet in members)
            weights = tuple(self.weights[subnet] for subnet in members)
            drops = self.drops[tree : tree + 1]
            own = (self.inputs[tree],), (self.trees[tree],), places, weights
            parts.append(Plan(*own, trains_main=False, drops=drops))
        return parts

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What it runs on each input."""
        return tuple(
            Pass(len(images), images.shape[-1], tree, drop.kept if drop else 0)
            for images, tree, drop in zip_longest(self.inputs, self.trees, self.drops)
        )

    @property
    def block_calls(self) -> int:
        """Residual blocks that the pass runs."""
        return sum(map(len, self.trees))


class Method(Protocol):
    """A training method."""

    def plan(self, images: Tensor, small: Sequence[Tensor], *, epoch: int, step: int, part: int = 0) -> Plan:
        """The forward pass of one step.

        Args:
            images: the full-size batch [B, 3, H, W].
            small: downscaled batches of the same images [B, 3, h, h].
            epoch: counted from 0.
            step: step within the epoch, counted from 0.
            part: of a batch that is trained in parts, counted from 0.
        """

    def loss(self, logits: Sequence[Sequence[Tensor]], plan: Plan, targets: Tensor) -> StimulativeLoss:
        """The step's loss from the logits [B, C] of each subnet of each of the plan's trees.

        Targets are class indices, int64 [B], or probabilities [B, C], whose likeliest class a hit is.
        """
