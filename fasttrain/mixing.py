"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), alike in the full-size and the downscaled batches.

Neighbours in the batch are mixed with each other: its order is random already, and pairs stay together
whatever the number of processes (at an even batch per process). One draw holds for all images of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .config import Data
from .randomness import Stream, generator


class Box(NamedTuple):
    """A rectangle in an image, edges in 0-1 of its height and width."""

    top: float
    left: float
    bottom: float
    right: float

    def pixels(self, side: int) -> tuple[slice, slice]:
        """Its rows and columns in a square image."""
        top, left, bottom, right = (round(side * edge) for edge in self)
        return slice(top, bottom), slice(left, right)


class Mix(NamedTuple):
    """How a step's images are mixed.

    Attributes:
        share: what an image keeps of itself, of its values or of its area; the rest is its partner's.
        box: where the partner shows (CutMix); None: everywhere, faintly (mixup).
    """

    share: float
    box: Box | None


@dataclass(frozen=True, slots=True)
class Mixing:
    """Mixes the batches of a run.

    Attributes:
        mixup: alpha of mixup's Beta(alpha, alpha), of which the share is drawn; 0: no mixup.
        cutmix: the same of CutMix.
        switch: probability of CutMix at a step where both are on.
        classes: of the network.
        seed: of the draws.
    """

    mixup: float
    cutmix: float
    switch: float
    classes: int
    seed: int

    def draw(self, epoch: int, step: int, side: int) -> Mix:
        """The mix of one step, a function of (seed, epoch, step) alone; `side`: of the full-size images."""
        rng = generator(self.seed, Stream.MIXING, epoch, step)
        chance, row, column = rng.random(3)
        cut = self.cutmix > 0 and (self.mixup == 0 or chance < self.switch)
        alpha = self.cutmix if cut else self.mixup
        share = rng.beta(alpha, alpha)
        if not cut:
            return Mix(share, None)
        half = math.sqrt(1 - share) / 2
        box = Box(
            max(row - half, 0.0), max(column - half, 0.0), min(row + half, 1.0), min(column + half, 1.0)
        )
        rows, columns = box.pixels(side)
        return Mix(1 - (rows.stop - rows.start) * (columns.stop - columns.start) / side**2, box)

    def __call__(
        self, images: Tensor, small: Sequence[Tensor], targets: Tensor, *, epoch: int, step: int
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """The mixed batches and their targets.

        Args:
            images: full-size batch [B, 3, H, H].
            small: downscaled batches [B, 3, h, h].
            targets: class indices, int64 [B].
            epoch: counted from 0.
            step: within the epoch.

        Returns:
            Batches of the same shapes, dtypes and memory formats, and probabilities [B, classes], float32
            (float64 with images of that dtype).
        """
        mix = self.draw(epoch, step, images.shape[-1])
        # the last of an odd batch is its own partner
        partner = (torch.arange(len(targets), device=targets.device) ^ 1).clamp_(max=len(targets) - 1)
        certain = targets[:, None] == torch.arange(self.classes, device=targets.device)
        soft = certain.to(torch.promote_types(images.dtype, torch.float32))
        mixed = [_mixed(batch, partner, mix) for batch in (images, *small)]
        return mixed[0], mixed[1:], torch.lerp(soft[partner], soft, mix.share)


def _mixed(images: Tensor, partner: Tensor, mix: Mix) -> Tensor:
    if mix.box is None:
        return torch.lerp(images[partner], images, mix.share)
    rows, columns = mix.box.pixels(images.shape[-1])
    mixed = images.clone()
    mixed[..., rows, columns] = images[..., rows, columns][partner]
    return mixed


def build_mixing(data: Data, classes: int, seed: int) -> Mixing | None:
    """What a configuration asks for: None without mixup and CutMix."""
    if data.mixup == data.cutmix == 0:
        return None
    return Mixing(data.mixup, data.cutmix, data.mix_switch, classes, seed)
