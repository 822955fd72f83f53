"""Stochastic depth (Huang et al. 2016): each image goes without some residual branches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import config
from ..kernels.runtime import Kernels
from ..models import StagedNetwork, survivals
from ..randomness import Stream, generator
from .common import Common
from .method import Plan


class StochasticDepth(Common):
    """Cross-entropy of the main network, of whose residual branches some are left out at random.

    Branch l of L survives with probability 1 - l / L * (1 - p_L) (equation 4), drawn for each image, as in
    timm's drop-path; the paper draws for each batch. What survives is divided by its probability, so that the
    evaluated network is the plain one; the paper multiplies by it there. A draw depends on (seed, epoch,
    step, rank) alone.
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
            network: prepared by `models.set_survival`.
            seed: of the draws.
            rank: of this process: each draws otherwise.
            kernels: implementation of the loss.
        """
        super().__init__(
            network.full,
            label_smoothing=options.label_smoothing,
            main_loss=options.main_loss,
            target_threshold=options.target_threshold,
            kernels=kernels,
        )
        self.survivals, self.seed, self.rank = survivals(network), seed, rank
        self._drawn: tuple[int, int] | None = None

    def plan(self, images: Tensor, small: Sequence[Tensor], *, epoch: int, step: int) -> Plan:
        """The main network on the full-size batch, and the draw for each of its branches.

        A step in parts (`run.accumulate`) plans each of them: its draws go on where the last part's ended.
        """
        if self._drawn != (epoch, step):
            seeds = generator(self.seed, Stream.SURVIVAL, epoch, step).integers(2**63, size=self.rank + 1)
            self._drawn, self._rng = (epoch, step), np.random.default_rng(seeds[-1])
        uniform = self._rng.random((len(self.survivals), len(images)), dtype=np.float32)
        numbers = torch.from_numpy(uniform).to(images.device, non_blocking=True)
        for survival, own in zip(self.survivals, numbers, strict=True):
            survival.draw(own)
        return super().plan(images, small, epoch=epoch, step=step)
