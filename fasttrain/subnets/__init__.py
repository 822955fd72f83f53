"""Subnets of a residual network: sampling spaces, draws, and the prefix tree that runs them together."""

from .draws import Draw, Window, draw_subnets, sample_distinct
from .spaces import OrderedSpace, RawSpace, Space, StochasticSpace, ordered_space, sampling_space
from .subnet import BlockRef, Depths, Part, Subnet, depths_of, ordered_subnet
from .tree import ROOT, Node, PrefixTree

__all__ = [
    "ROOT",
    "BlockRef",
    "Depths",
    "Draw",
    "Node",
    "OrderedSpace",
    "Part",
    "PrefixTree",
    "RawSpace",
    "Space",
    "StochasticSpace",
    "Subnet",
    "Window",
    "depths_of",
    "draw_subnets",
    "ordered_space",
    "ordered_subnet",
    "sample_distinct",
    "sampling_space",
]
