"""Common training (CT): the main network's cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..kernels.normalized_loss import StimulativeLoss, stimulative_loss
from ..kernels.runtime import Kernels
from ..subnets import PrefixTree, Subnet
from .method import Plan


class Common:
    """Cross-entropy of the main network alone."""

    def __init__(self, full: Subnet, kernels: Kernels = "reference") -> None:
        """`full`: the main network as a subnet of itself; `kernels`: implementation of the loss."""
        self.tree, self.kernels = PrefixTree([full]), kernels

    def plan(self, images: Tensor, small: Sequence[Tensor], *, epoch: int, step: int) -> Plan:
        """The main network on the full-size batch."""
        return Plan((images,), (self.tree,))

    def loss(self, logits: Sequence[Sequence[Tensor]], plan: Plan, targets: Tensor) -> StimulativeLoss:
        """Cross-entropy, as a stimulative loss without subnets."""
        return stimulative_loss(logits[0][0], [], targets, weights=[], normalize="none", kernels=self.kernels)
