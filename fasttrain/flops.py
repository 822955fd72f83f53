"""What a step computes: FLOPs of its plan's trees, from each block's at each image size, counted once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .methods import Pass
from .models import Mask, StagedNetwork, create_model
from .subnets import BlockRef, Part, Subnet

META = torch.device("meta")


def count(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in one call, a multiply-add as two.

    Only shapes matter: on tensors of the meta device nothing is computed.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@functools.cache
def meta_network(name: str, classes: int = 1000) -> StagedNetwork:
    """A network without storage; in evaluation mode, in which batch norm takes single pixels.

    Raises:
        ConfigError: an unknown name.
    """
    with META:
        return create_model(name, classes).eval()


class SideCosts:
    """FLOPs per image, forward and backward, of a network's parts on images of one side.

    Attributes:
        stem: of the stem; no gradient of the images is computed.
        head: of the head.
    """

    def __init__(self, network: StagedNetwork, side: int, kept: int = 0) -> None:
        """Count.

        Args:
            network: a `meta_network`.
            side: of the images, pixels.
            kept: squares of each image that a mask keeps; 0: there is none.
        """
        self.network = network
        self.inputs: dict[tuple[int, int], tuple[int, ...]] = {}
        name = "".join(map(str, network.stem_modules))
        stem = network.stem
        if kept and network.mask_square:  # elsewhere a mask changes no shape
            mask = Mask(torch.zeros(1, kept, dtype=torch.int64, device=META), network.mask_square, side, side)
            name, stem = f"{name} {kept}", functools.partial(network.masked_stem, mask=mask)
        self.stem, shape = _count(name, stem, (1, 3, side, side), first=True)
        self.blocks: dict[BlockRef, int] = {}
        for ref in network.full:
            self.inputs[ref.stage, ref.block] = shape
            self.blocks[ref], shape = self._block(ref)
        name = "".join(map(str, network.head_modules))
        self.head, _ = _count(name, network.head, shape, first=False)

    def block(self, ref: BlockRef) -> int:
        """Of one block, or a part of it."""
        if ref not in self.blocks:
            self.blocks[ref], _ = self._block(ref)
        return self.blocks[ref]

    def _block(self, ref: BlockRef) -> _Counted:
        name = f"{Part(ref.part).name} of {self.network.stages[ref.stage][ref.block]}"
        run = functools.partial(self.network.run_block, ref)
        return _count(name, run, self.inputs[ref.stage, ref.block], first=False)


@functools.cache
def side_costs(network: StagedNetwork, side: int, kept: int = 0) -> SideCosts:
    """FLOPs of a `meta_network`'s parts on images of one side, counted when first asked for."""
    return SideCosts(network, side, kept)


def passes_flops(network: StagedNetwork, passes: Iterable[Pass]) -> float:
    """Of one forward and backward pass over trees, for all their images.

    Args:
        network: a `meta_network`.
        passes: of a plan.
    """
    flops = 0
    for images, side, tree, kept in passes:
        costs = side_costs(network, side, kept)
        blocks = sum(costs.block(node.ref) for node in tree.nodes)
        flops += images * (costs.stem + blocks + costs.head * len(set(tree.leaves)))
    return flops


class ForwardCosts:
    """Multiply-adds per image of a network's parts, forward alone: what papers call FLOPs."""

    def __init__(self, network: StagedNetwork, side: int) -> None:
        """Count.

        Args:
            network: a `meta_network`.
            side: of the images, pixels.
        """
        self.blocks: dict[BlockRef, int] = {}
        stem, x = _count_forward(network.stem, torch.empty(1, 3, side, side, device=META))
        for ref in network.full:
            self.blocks[ref], x = _count_forward(functools.partial(network.run_block, ref), x)
        head, _ = _count_forward(network.head, x)
        self.ends = stem + head

    def of(self, subnet: Subnet) -> int:
        """Of a subnet of whole blocks."""
        return self.ends + sum(self.blocks[ref] for ref in subnet)


def _count_forward(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[int, Tensor]:
    """Multiply-adds of one call without gradients, and its output."""
    outputs = []
    with torch.no_grad():
        flops = count(lambda: outputs.append(run(x)))
    return flops // 2, outputs[0]


_Counted = tuple[int, tuple[int, ...]]
_COUNTED: dict[tuple[str, tuple[int, ...]], _Counted] = {}
"""FLOPs and output shape, by a module's description and input shape: equal blocks cost the same."""


def _count(name: str, run: Callable[[Tensor], Tensor], shape: tuple[int, ...], *, first: bool) -> _Counted:
    """Of a forward and backward pass; `first`: its input is images, which have no gradient."""
    key = name, shape
    if key not in _COUNTED:
        shapes = []

        def step() -> None:
            y = run(torch.empty(shape, device=META, requires_grad=not first))
            shapes.append(tuple(y.shape))
            y.sum().backward()

        _COUNTED[key] = count(step), shapes[0]
    return _COUNTED[key]
