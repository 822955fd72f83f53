"""Drop-path (stochastic depth, Huang et al. 2016) as timm's recipes have it, for any staged network."""

from __future__ import annotations

from timm.layers import DropPath

from ..errors import ConfigError
from .drop import PATHS
from .staged import StagedNetwork


def set_drop_path(network: StagedNetwork, rate: float) -> None:
    """Leave each image's residual branches out at random in training, in place.

    The probability grows linearly from 0 in the first block to `rate` in the last; what stays is scaled up by
    the inverse of its own. A batch norm whose output is dropped is not fused with the residual add.

    Args:
        network: of timm's blocks.
        rate: of the last block, 0 to below 1.

    Raises:
        ConfigError: a block without a place for it.
    """
    blocks = [block for stage in network.stages for block in stage]
    for index, block in enumerate(blocks):
        own = rate * index / max(1, len(blocks) - 1)
        places = [name for name in PATHS if hasattr(block, name)]
        if rate and not places:
            raise ConfigError(
                f"model.drop_path is {rate:g}; allowed for {network.title}, whose "
                f"{type(block).__name__} has no drop-path: 0"
            )
        if own:
            for name in places:
                setattr(block, name, DropPath(own).train(block.training))
