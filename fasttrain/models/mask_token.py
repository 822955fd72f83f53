"""The learned token that a masked pass of a transformer sees where it may not see the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..subnets import PrefixTree
from .auxiliary import Auxiliary
from .drop import Drop
from .staged import StagedNetwork

DEVIATION = 0.02
"""Of the token's first values (AugSub's code, as SimMIM's)."""


class MaskToken(Auxiliary):
    """One token for all hidden ones; it is no part of the network, which is timm's."""

    def __init__(self, channels: int) -> None:
        """A random token of so many channels."""
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, channels))
        nn.init.normal_(self.mask_token, std=DEVIATION)

    def run(
        self,
        network: StagedNetwork,
        inputs: Sequence[Tensor],
        trees: Sequence[PrefixTree],
        drops: Sequence[Drop | None],
    ) -> list[list[Tensor]]:
        """As `StagedNetwork.forward_trees`; the masks show the token."""
        return network.forward_trees(inputs, trees, [self._show(drop) for drop in drops])

    def _show(self, drop: Drop | None) -> Drop | None:
        if drop is None or drop.mask is None:
            return drop
        return replace(drop, mask=replace(drop.mask, token=self.mask_token))
