"""Stochastic depth (Huang et al. 2016): each image goes without some residual branches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import config
from ..errors import ConfigError
from ..kernels.runtime import Kernels
from ..models import Drop, StagedNetwork, kinds_of_drop
from ..randomness import Stream
from .common import Common
from .device_random import device_generator
from .method import Plan


class StochasticDepth(Common):
    """Cross-entropy of the main network, of whose residual branches some are left out at random.

    Branch l of L survives with probability 1 - l / L * (1 - p_L) (equation 4), drawn for each image, as in
    timm's drop-path; the paper draws for each batch. What survives is divided by its probability, so that the
    evaluated network is the plain one; the paper multiplies by it there. A draw depends on (seed, epoch,
    step, rank, part of the batch) alone, and on the kind of device.
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
            rank: of this process: each draws otherwise.
            kernels: implementation of the loss.

        Raises:
            ConfigError: a network without residual branches.
        """
        if "path" not in kinds_of_drop(network):
            raise ConfigError(
                f"method.name is 'stochastic_depth'; {network.title} has no residual "
                "branch that could be left out; allowed: networks of timm's residual blocks"
            )
        super().__init__(
            network.full,
            label_smoothing=options.label_smoothing,
            main_loss=options.main_loss,
            target_threshold=options.target_threshold,
            kernels=kernels,
        )
        self.rate, self.seed, self.rank = 1 - options.survival, seed, rank

    def plan(self, images: Tensor, small: Sequence[Tensor], *, epoch: int, step: int, part: int = 0) -> Plan:
        """The main network on the full-size batch, some branches dropped."""
        at = {"epoch": epoch, "step": step, "rank": self.rank, "part": part}
        rng = device_generator(images.device, self.seed, Stream.SURVIVAL, **at)
        drop = Drop("path", rate=self.rate, rising=True, generator=rng)
        return Plan((images,), (self.tree,), drops=(drop,))
