"""What a step computes: FLOPs of its plan's trees, from each block's at each image size, counted once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .methods import Pass
from .models import Mask, StagedNetwork, create_model
from .subnets import ROOT, BlockRef, Part, PrefixTree, Subnet

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
    with torch.random.fork_rng(devices=[]), META:  # a run's random numbers stay as they are
        return create_model(name, classes).eval()


_Shape = tuple[int, ...]


class SideCosts:
    """FLOPs per image of a network on images of one side, forward and backward, a multiply-add as two.

    What a block or the head costs depends on its input's shape as well: after the first layers of a dense
    block there are fewer channels.
    """

    gradients = True

    def __init__(self, network: StagedNetwork, side: int, kept: int = 0) -> None:
        """Count the stem.

        Args:
            network: a `meta_network`.
            side: of the images, pixels.
            kept: squares of each image that a mask keeps; 0: there is none.
        """
        self.network = network
        self._by_name: dict[tuple[str, _Shape], tuple[int, _Shape]] = {}
        self._by_ref: dict[tuple[BlockRef, _Shape], tuple[int, _Shape]] = {}
        stem = network.stem
        if kept and network.mask_square:  # elsewhere a mask changes no shape
            mask = Mask(torch.zeros(1, kept, dtype=torch.int64, device=META), network.mask_square, side, side)
            stem = functools.partial(network.masked_stem, mask=mask)
        self.stem, self.shape = self._count("", network.stem_modules, stem, (1, 3, side, side), first=True)

    def tree(self, tree: PrefixTree) -> int:
        """Of one pass over a tree."""
        flops, shapes = self.stem, {ROOT: self.shape}
        for index, node in enumerate(tree.nodes):
            own, shapes[index] = self._block(node.ref, shapes[node.parent])
            flops += own
        return flops + sum(self._head(shapes[leaf]) for leaf in set(tree.leaves))

    @functools.cached_property
    def inputs(self) -> dict[tuple[int, int], _Shape]:
        """Shape of the input of each of the main network's blocks, by stage and block."""
        shape, shapes = self.shape, {}
        for ref in self.network.full:
            shapes[ref.stage, ref.block] = shape
            _, shape = self._block(ref, shape)
        return shapes

    def _block(self, ref: BlockRef, shape: _Shape) -> tuple[int, _Shape]:
        if (ref, shape) not in self._by_ref:
            run = functools.partial(self.network.run_block, ref)
            modules = self.network.block_modules(ref)
            self._by_ref[ref, shape] = self._count(Part(ref.part).name, modules, run, shape)
        return self._by_ref[ref, shape]

    def _head(self, shape: _Shape) -> int:
        return self._count("", self.network.head_modules, self.network.head, shape)[0]

    def _count(
        self,
        prefix: str,
        modules: Sequence[nn.Module],
        run: Callable[[Tensor], Tensor],
        shape: _Shape,
        *,
        first: bool = False,
    ) -> tuple[int, _Shape]:
        """FLOPs and output shape, once for equal modules and shapes; `first`: images have no gradient."""
        key = prefix + "".join(map(str, modules)), shape
        if key not in self._by_name:
            outputs: list[_Shape] = []
            x = torch.empty(shape, device=META, requires_grad=self.gradients and not first)

            def step() -> None:
                y = run(x)
                outputs.append(tuple(y.shape))
                if self.gradients:
                    y.sum().backward()

            with torch.set_grad_enabled(self.gradients):
                self._by_name[key] = count(step), outputs[0]
        return self._by_name[key]


@functools.cache
def side_costs(network: StagedNetwork, side: int, kept: int = 0) -> SideCosts:
    """FLOPs of a `meta_network` on images of one side, each part counted when first asked for."""
    return SideCosts(network, side, kept)


def passes_flops(network: StagedNetwork, passes: Iterable[Pass]) -> float:
    """Of one forward and backward pass over trees, for all their images.

    Args:
        network: a `meta_network`.
        passes: of a plan.
    """
    return sum(images * side_costs(network, side, kept).tree(tree) for images, side, tree, kept in passes)


class ForwardCosts(SideCosts):
    """The same of forward passes alone."""

    gradients = False

    def of(self, subnet: Subnet) -> int:
        """Multiply-adds of a subnet: what papers call FLOPs."""
        return self.tree(PrefixTree([subnet])) // 2
