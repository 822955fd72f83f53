"""A residual network seen as stem, stages of blocks, and head, able to run many subnets at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..subnets import ROOT, BlockRef, Depths, Part, PrefixTree, Subnet, depths_of, ordered_subnet

if TYPE_CHECKING:
    from .auxiliary import AuxiliaryClassifiers

BeforeNode = Callable[[int], None]
"""Called with a tree node's index (ROOT: the stem) just before it runs."""


class StagedNetwork(nn.Module, ABC):
    """A residual network of `stages`, each a sequence of blocks; parameters keep their library's names.

    Batch norm's running statistics belong to the main network: only a pass of all blocks at full size
    updates them, never a subnet's.

    Attributes:
        name: what `create_model` was asked for, or empty.
        reduction: side of the input over side of the last feature map.
        num_classes: outputs of the classifier.
    """

    name: str = ""
    reduction: int
    num_classes: int

    @property
    @abstractmethod
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The residual blocks of each stage."""

    @property
    @abstractmethod
    def stem_modules(self) -> Sequence[nn.Module]:
        """The modules that `stem` runs."""

    @property
    @abstractmethod
    def head_modules(self) -> Sequence[nn.Module]:
        """The modules that `head` runs."""

    @abstractmethod
    def stem(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] images to the first stage's input."""

    @abstractmethod
    def head(self, x: Tensor) -> Tensor:
        """The last stage's output to logits [B, num_classes]."""

    @abstractmethod
    def branch(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block without its shortcut."""

    @abstractmethod
    def shortcut(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block without its residual branch."""

    def has_shortcut(self, block: nn.Module) -> bool:
        """Whether a block adds its input, or a projection of it, to its residual branch."""
        return True

    @property
    def depths(self) -> Depths:
        """Blocks per stage."""
        return tuple(len(stage) for stage in self.stages)

    @property
    def full(self) -> Subnet:
        """The main network as a subnet of itself: every block."""
        return ordered_subnet(self.depths)

    @property
    def classifier_names(self) -> list[str]:
        """Names in the state dict of the last linear layer's parameters, which fit one set of classes."""
        classifier = set(self.head_modules[-1].parameters())
        return [name for name, parameter in self.named_parameters() if parameter in classifier]

    @property
    def without_shortcut(self) -> frozenset[BlockRef]:
        """The blocks without a shortcut: no subnet can do without them, nor run a part of them."""
        return frozenset(ref for ref in self.full if not self.has_shortcut(self.stages[ref.stage][ref.block]))

    def keep(self, depths: Sequence[int]) -> None:
        """Become a subnet: of each stage the first `depths` blocks stay, under their names.

        Raises:
            ValueError: depths that the network does not have.
        """
        kept = depths_of(self.as_subnet(tuple(depths)), len(self.depths))
        for stage, depth in zip(self.stages, kept, strict=True):
            del stage[depth:]  # type: ignore[attr-defined]

    def run_block(self, ref: BlockRef, x: Tensor) -> Tensor:
        """Run one block, or one part of it.

        Raises:
            ValueError: a part of a block without a shortcut.
        """
        block = self.stages[ref.stage][ref.block]
        if ref.part != Part.WHOLE and not self.has_shortcut(block):
            raise ValueError(
                f"the subnet holds {ref}; block {ref.block} of stage {ref.stage} has no shortcut; allowed: "
                f"{Part.WHOLE!r}"
            )
        if ref.part == Part.BRANCH:
            return self.branch(block, x)
        if ref.part == Part.SHORTCUT:
            return self.shortcut(block, x)
        return block(x)

    def forward(self, x: Tensor, depths: Sequence[int] | Subnet | None = None) -> Tensor:
        """Logits [B, num_classes] of the main network, or of one subnet.

        Args:
            x: images [B, 3, H, W].
            depths: blocks kept per stage, or a `Subnet`; None: all.

        Raises:
            ValueError: depths that the network does not have.
        """
        return self.forward_tree(x, [self.depths if depths is None else depths])[0]

    def forward_tree(self, x: Tensor, subnets: Sequence[Sequence[int] | Subnet]) -> list[Tensor]:
        """Logits [B, num_classes] of each subnet on the same images, shared blocks run once.

        Args:
            x: images [B, 3, H, W].
            subnets: depths (blocks kept per stage) or `Subnet`s. If the first is the main network, its
                pass updates the running statistics.

        Raises:
            ValueError: a subnet that the network does not have.
        """
        tree = PrefixTree([self.as_subnet(subnet) for subnet in subnets])
        return self.forward_trees([x], [tree])[0]

    def forward_trees(self, inputs: Sequence[Tensor], trees: Sequence[PrefixTree]) -> list[list[Tensor]]:
        """Logits of every subnet of every tree, each tree on its own input.

        If the first subnet of the first tree is the main network, its pass runs first and updates the
        running statistics; all other passes leave them alone.

        Args:
            inputs: images [B, 3, H, W], one tensor per tree.
            trees: the subnets to run on each.

        Returns:
            For each tree, the logits [B, num_classes] of its subnets.
        """
        return [walk.finish() for walk in self._walk(TreeWalk, inputs, trees)]

    def stage_outputs(
        self, inputs: Sequence[Tensor], trees: Sequence[PrefixTree]
    ) -> list[list[tuple[Tensor, ...]]]:
        """As `forward_trees`, but of every subnet each stage's output [B, C, h, w], and no head runs."""
        return [walk.features() for walk in self._walk(FeatureWalk, inputs, trees)]

    def _walk(self, walk: type[Walk], inputs: Sequence[Tensor], trees: Sequence[PrefixTree]) -> list[Walk]:
        """A walk of a kind over each tree, run to its end; the main network's pass alone is tracked."""
        first = walk(self, trees[0], inputs[0], tracked=trees[0].subnets[0] == self.full)
        with frozen_statistics(self):
            walks = [first, *(walk(self, tree, x) for tree, x in zip(trees[1:], inputs[1:], strict=True))]
            for each in walks:
                each.run()
        return walks

    def as_subnet(self, subnet: Sequence[int] | Subnet) -> Subnet:
        """Depths or `Subnet` to a `Subnet` of this network.

        Raises:
            ValueError: it does not fit the network.
        """
        refs = [entry for entry in subnet if isinstance(entry, BlockRef)]
        if refs:
            unknown = set(refs) - {ref._replace(part=part) for ref in self.full for part in Part}
            if unknown:
                raise ValueError(
                    f"the subnet holds {min(unknown)}; the network has {self.depths} blocks per stage"
                )
            return tuple(refs)
        depths = tuple(int(entry) for entry in subnet if isinstance(entry, int))
        fits = len(depths) == len(self.depths) and all(
            1 <= depth <= full for depth, full in zip(depths, self.depths, strict=True)
        )
        if not fits:
            raise ValueError(f"depths are {depths}; allowed: 1 to {self.depths} blocks per stage")
        return ordered_subnet(depths)

    def take_over(self, source: Any) -> None:
        """Make a timm model's modules one's own, under their own names; it must not be used afterwards."""
        for name, child in source.named_children():
            self.add_module(name, child)
        self.num_classes = source.num_classes
        self.reduction = source.feature_info[-1]["reduction"]
        self.drop_rate = float(source.drop_rate)


class TreeWalk:
    """One pass over a prefix tree; activations are released as soon as nothing reads them any more.

    With `tracked` the first subnet runs on construction, as the main network: outside of any
    `frozen_statistics`, so that its pass updates the running statistics.
    """

    def __init__(
        self,
        network: StagedNetwork,
        tree: PrefixTree,
        x: Tensor,
        *,
        tracked: bool = False,
        before: BeforeNode | None = None,
    ) -> None:
        self.network, self.tree, self.before = network, tree, before
        self.unread = list(tree.children)
        self.leaves = frozenset(tree.leaves)
        self.logits: dict[int, Tensor] = {}
        self.done = 0
        self.activations: dict[int, Tensor] = {}
        self.input = x
        if tracked:
            self._advance(tree.trunk)

    def finish(self) -> list[Tensor]:
        """Run what is left; the logits [B, num_classes] of each of the tree's subnets."""
        self.run()
        return [self.logits[leaf] for leaf in self.tree.leaves]

    def run(self) -> None:
        """Run what is left."""
        self._advance(len(self.tree))

    def _advance(self, stop: int) -> None:
        if self.done == 0:
            self._announce(ROOT)
            self.activations[ROOT] = self.network.stem(self.input)
            del self.input
        for index in range(self.done, stop):
            ref, parent = self.tree.nodes[index]
            self._announce(index)
            x = self.network.run_block(ref, self._read(parent))
            self._take(index, x)
            if self.unread[index]:
                self.activations[index] = x
        self.done = stop

    def _take(self, index: int, x: Tensor) -> None:
        """What a node's output is for, besides the nodes that read it."""
        if index in self.leaves:
            self.logits[index] = self._head(index, x)

    def _head(self, index: int, x: Tensor) -> Tensor:
        if index == self.tree.leaves[0]:
            return self.network.head(x)
        # a subnet that is a prefix of the main network ends within its pass
        with frozen_statistics(*self.network.head_modules):
            return self.network.head(x)

    def _announce(self, index: int) -> None:
        if self.before is not None:
            self.before(index)

    def _read(self, index: int) -> Tensor:
        self.unread[index] -= 1
        return self.activations[index] if self.unread[index] else self.activations.pop(index)


class FeatureWalk(TreeWalk):
    """A walk that keeps the output of each subnet's last block in every stage, and runs no head."""

    def __init__(self, network: StagedNetwork, tree: PrefixTree, x: Tensor, *, tracked: bool = False) -> None:
        self.ends = {leaf: _stage_ends(tree, leaf) for leaf in tree.leaves}
        self.kept = {index for ends in self.ends.values() for index in ends}
        self.outputs: dict[int, Tensor] = {}
        super().__init__(network, tree, x, tracked=tracked)

    def features(self) -> list[tuple[Tensor, ...]]:
        """Run what is left; of each of the tree's subnets the stages' outputs [B, C, h, w], first to last."""
        self.run()
        return [tuple(self.outputs[index] for index in self.ends[leaf]) for leaf in self.tree.leaves]

    def _take(self, index: int, x: Tensor) -> None:
        if index in self.kept:
            self.outputs[index] = x


def _stage_ends(tree: PrefixTree, leaf: int) -> list[int]:
    """The nodes at which a subnet leaves its stages."""
    ends: dict[int, int] = {}
    index = leaf
    while index != ROOT:
        ref, parent = tree.nodes[index]
        ends.setdefault(ref.stage, index)
        index = parent
    return [ends[stage] for stage in sorted(ends)]


Walk = TypeVar("Walk", bound=TreeWalk)


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers in a module, in definition order."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def frozen_statistics(*modules: nn.Module) -> Iterator[None]:
    """Batch norm in training mode normalizes by the batch, but leaves the running statistics as they are."""
    layers = [layer for module in modules for layer in batch_norms(module) if layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def initialize(network: nn.Module) -> None:
    """Initialize as the published ST code: He fan-out normal convolutions, batch norm 1 and 0 in every
    block, classifier normal with standard deviation 0.01 and no bias.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, _BatchNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


class TreeForward(nn.Module):
    """What DDP wraps: the one forward call of a training step.

    Attributes:
        network: what is trained.
        auxiliary: classifiers of its blocks that are trained with it, or None.
    """

    def __init__(self, network: StagedNetwork, auxiliary: AuxiliaryClassifiers | None = None) -> None:
        super().__init__()
        self.network, self.auxiliary = network, auxiliary

    def forward(self, inputs: Sequence[Tensor], trees: Sequence[PrefixTree]) -> list[list[Tensor]]:
        """See `StagedNetwork.forward_trees`; with `auxiliary` the main network's pass (`run`) is all."""
        if self.auxiliary is not None:
            return [self.auxiliary.run(self.network, inputs[0])]
        return self.network.forward_trees(inputs, trees)
