"""Common training (CT): the main network's loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..kernels.normalized_loss import MainLoss, StimulativeLoss, stimulative_loss
from ..kernels.runtime import Kernels
from ..subnets import PrefixTree, Subnet
from .method import Plan


class Common:
    """Cross-entropy of the main network alone, or binary cross-entropy (`main_loss`)."""

    def __init__(
        self,
        full: Subnet,
        *,
        label_smoothing: float = 0.0,
        main_loss: MainLoss = "ce",
        target_threshold: float = 0.0,
        kernels: Kernels = "reference",
    ) -> None:
        """Set up for one network.

        Args:
            full: the main network as a subnet of itself.
            label_smoothing: share of each target spread over all classes.
            main_loss: `ce` or `bce`.
            target_threshold: of `bce`.
            kernels: implementation of the loss.
        """
        self.tree, self.label_smoothing, self.kernels = PrefixTree([full]), label_smoothing, kernels
        self.main_loss, self.target_threshold = main_loss, target_threshold

    def plan(self, images: Tensor, small: Sequence[Tensor], *, epoch: int, step: int, part: int = 0) -> Plan:
        """The main network on the full-size batch."""
        return Plan((images,), (self.tree,))

    def loss(self, logits: Sequence[Sequence[Tensor]], plan: Plan, targets: Tensor) -> StimulativeLoss:
        """The main loss, as a stimulative loss without subnets."""
        return stimulative_loss(
            logits[0][0],
            [],
            targets,
            weights=[],
            normalize="none",
            label_smoothing=self.label_smoothing,
            main_loss=self.main_loss,
            target_threshold=self.target_threshold,
            kernels=self.kernels,
        )
