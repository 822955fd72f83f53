"""The prefix tree: what several subnets on the same input have in common, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .subnet import BlockRef, Subnet

ROOT = -1
"""The stem: parent of every subnet's first block."""


class Node(NamedTuple):
    """One block call: block `ref`, run on the output of node `parent`."""

    ref: BlockRef
    parent: int


class PrefixTree:
    """The block calls of several subnets on one input, equal subnets and common prefixes merged.

    Batch norm in training mode gives equal outputs for equal inputs, so that two subnets share all their
    activations up to the first block in which they differ, and sharing changes no gradient.

    Attributes:
        subnets: the subnets, as given.
        nodes: the block calls in an order in which parents come first; those of the first subnet lead.
        leaves: for each subnet, the node whose output its head reads.
        children: for each node, how many nodes read it; entry -1 (the last) is the stem's.
        trunk: how many of the first nodes make up the first subnet.
    """

    __slots__ = ("children", "leaves", "nodes", "subnets", "trunk")

    def __init__(self, subnets: Sequence[Subnet]) -> None:
        """Merge `subnets`.

        Raises:
            ValueError: no subnet, or one without a block.
        """
        if not subnets or not all(subnets):
            raise ValueError(f"a prefix tree needs subnets of at least one block each, got {list(subnets)!r}")
        index: dict[Node, int] = {}
        leaves = []
        for subnet in subnets:
            node = ROOT
            for ref in subnet:
                node = index.setdefault(Node(ref, node), len(index))
            leaves.append(node)
        self.subnets = tuple(subnets)
        self.nodes = tuple(index)
        self.leaves = tuple(leaves)
        self.children = [0] * (len(index) + 1)
        for node_ in self.nodes:
            self.children[node_.parent] += 1
        self.trunk = len(subnets[0])

    def __len__(self) -> int:
        """The number of block calls."""
        return len(self.nodes)
