"""Networks without some of their blocks: of a deleted block the shortcut alone runs.

Veit et al. 2016 delete residual modules so: where the shortcut is the identity the block is gone; where it
changes width or resolution its projection stays.
"""

from __future__ import annotations

from collections.abc import Collection

from ..errors import ConfigError
from ..models import StagedNetwork
from ..subnets import BlockRef, Part, Subnet


def deletable(network: StagedNetwork) -> list[BlockRef]:
    """The blocks with a shortcut, in order.

    Raises:
        ConfigError: none has one.
    """
    blocks = [ref for ref in network.full if ref not in network.without_shortcut]
    if not blocks:
        raise ConfigError(f"no block of {network.name} has a shortcut that could stand for it")
    return blocks


def without(network: StagedNetwork, deleted: Collection[BlockRef]) -> Subnet:
    """The network without the residual branches of some blocks."""
    return tuple(ref._replace(part=Part.SHORTCUT) if ref in deleted else ref for ref in network.full)


def name_of(ref: BlockRef) -> str:
    """Stage and block, counted from 1."""
    return f"{ref.stage + 1}.{ref.block + 1}"
