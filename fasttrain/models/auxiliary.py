"""What a method trains besides the network, and with it alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from ..subnets import PrefixTree
from .drop import Drop
from .staged import StagedNetwork


class Auxiliary(nn.Module, ABC):
    """Modules that take part in a step's forward pass; a checkpoint holds them for a resume, and nothing else
    does: neither evaluation nor an export knows of them.
    """

    @abstractmethod
    def run(
        self,
        network: StagedNetwork,
        inputs: Sequence[Tensor],
        trees: Sequence[PrefixTree],
        drops: Sequence[Drop | None],
    ) -> list[list[Tensor]]:
        """The step's forward pass, in place of `network.forward_trees(inputs, trees, drops)`."""
