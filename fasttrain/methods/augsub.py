"""AugSub (Heo et al. 2023, also published as MaskSub): the main network under more drop follows itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import config
from ..errors import ConfigError
from ..kernels.normalized_loss import StimulativeLoss, stimulative_loss
from ..kernels.runtime import Kernels
from ..models import Drop, Mask, StagedNetwork, kinds_of_drop
from ..randomness import Stream
from ..subnets import PrefixTree
from .device_random import device_generator
from .method import Plan

WEIGHT = 0.5
"""Of either loss."""


class AugSub:
    """Half the loss of the main network, and half that of a sub-model whose target is the main output.

    The sub-model has the main network's weights and blocks, and more drop: for images x, targets y and the
    softmax s,

        L = 1/2 CE(f(x), y) + 1/2 CE(f_drop(x), s(f(x))),

    where f(x) in the second term is the teacher and gets no gradient. With `main_loss` bce both terms are
    binary cross-entropies, and s is the sigmoid. Each image has a mask of its own. What is dropped depends on
    (seed, epoch, step, rank, part of the batch) alone, and on the kind of device.
    """

    def __init__(
        self,
        options: config.Method,
        network: StagedNetwork,
        *,
        seed: int,
        rank: int = 0,
        kernels: Kernels = "reference",
    ) -> None:
        """Set up for one network and run.

        Args:
            options: the method's configuration.
            network: what is trained.
            seed: of the draws.
            rank: of this process: each drops otherwise.
            kernels: implementation of the loss.

        Raises:
            ConfigError: a kind of drop that is not defined on the network.
        """
        _check_kind(network, options.drop)
        self.options, self.seed, self.rank, self.kernels = options, seed, rank, kernels
        self.tree = PrefixTree([network.full])
        self.square = network.mask_square or options.mask_square
        self.rounds_up = network.mask_rounds_up

    def plan(self, images: Tensor, small: Sequence[Tensor], *, epoch: int, step: int, part: int = 0) -> Plan:
        """The main network and the sub-model, each in a pass over the full-size batch."""
        drop = self._draw(images, epoch, step, part)
        return Plan((images, images), (self.tree, self.tree), ((1, 0),), (WEIGHT,), drops=(None, drop))

    def _draw(self, images: Tensor, epoch: int, step: int, part: int) -> Drop:
        kind, ratio = self.options.drop, self.options.drop_ratio
        at = {"epoch": epoch, "step": step, "rank": self.rank, "part": part}
        rng = device_generator(images.device, self.seed, Stream.DROP, **at)
        if kind == "masking":
            return Drop(kind, draw_mask(images, self.square, ratio, rng, rounds_up=self.rounds_up))
        return Drop(kind, rate=ratio, generator=rng)

    def loss(self, logits: Sequence[Sequence[Tensor]], plan: Plan, targets: Tensor) -> StimulativeLoss:
        """The two halves, as a stimulative loss with one subnet."""
        options = self.options
        return stimulative_loss(
            logits[0][0],
            [logits[tree][position] for tree, position in plan.places],
            targets,
            weights=plan.weights,
            supervision="bce_teacher" if options.main_loss == "bce" else "ce_teacher",
            normalize="none",
            main_weight=WEIGHT if plan.trains_main else 0.0,
            label_smoothing=options.label_smoothing,
            main_loss=options.main_loss,
            target_threshold=options.target_threshold,
            kernels=self.kernels,
        )


def _check_kind(network: StagedNetwork, kind: str) -> None:
    allowed = kinds_of_drop(network)
    if kind not in allowed:
        lacking = "attention" if kind == "dropout" else "drop-path"
        raise ConfigError(
            f"method.drop is {kind!r}; allowed for {network.title}, whose blocks have "
            f"no {lacking}: {', '.join(allowed)}"
        )


def draw_mask(
    images: Tensor, square: int, ratio: float, rng: torch.Generator | None, *, rounds_up: bool = False
) -> Mask:
    """Of each image a random share `ratio` of the squares is hidden (`hidden_of`).

    Args:
        images: [B, 3, H, W].
        square: side of the squares, pixels.
        ratio: share that is hidden, in (0, 1).
        rng: on the images' device.
        rounds_up: as of `hidden_of`.
    """
    count, _, height, width = images.shape
    squares = squares_of(height, width, square)
    noise = torch.rand(count, squares, generator=rng, device=images.device)
    kept = squares - hidden_of(squares, ratio, rounds_up=rounds_up)
    return Mask(noise.argsort(1)[:, :kept], square, height, width)


def squares_of(height: int, width: int, square: int) -> int:
    """How many squares cover an image; sides in pixels."""
    return math.ceil(height / square) * math.ceil(width / square)


def hidden_of(squares: int, ratio: float, *, rounds_up: bool) -> int:
    """How many of an image's squares are hidden: a share `ratio`, rounded up (`mask_rounds_up`) or down.

    Of 7 x 7 squares half are, in the authors' code, 25 of a Swin transformer's and 24 of a ResNet's.
    """
    hidden = round(ratio * squares, 6)  # 0.29 * 100 is 28.999999999999996
    return math.ceil(hidden) if rounds_up else math.floor(hidden)
