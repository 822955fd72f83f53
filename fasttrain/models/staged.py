"""A residual network seen as stem, stages of blocks, and head, able to run many subnets at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from ..subnets import ROOT, BlockRef, Depths, Part, PrefixTree, Subnet, depths_of, ordered_subnet
from .drop import Drop, Mask

if TYPE_CHECKING:
    from .auxiliary import Auxiliary

BeforeNode = Callable[[int], None]
"""Called with a tree node's index (ROOT: the stem) just before it runs."""


class StagedNetwork(nn.Module, ABC):
    """A residual network of `stages`, each a sequence of blocks; parameters keep their library's names.

    Batch norm's running statistics belong to the main network: only a pass of all blocks at full size
    updates them, never a subnet's.

    Attributes:
        name: what `create_model` was asked for, or empty.
        reduction: side of the input over side of the last feature map.
        multiple: the sides of images are multiples of it, pixels.
        num_classes: outputs of the classifier.
        mask_square: side of the squares that a mask is made of, pixels; 0: any.
        mask_rounds_up: whether a mask hides one square more, not less, where its share is no whole number.
        origin: which of several sets of weights in a file it started from, as a line; else empty.
    """

    name: str = ""
    reduction: int
    multiple: int = 1
    num_classes: int
    mask_square: int = 0
    mask_rounds_up: bool = False
    origin: str = ""

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

    def masked_stem(self, x: Tensor, mask: Mask) -> Tensor:
        """As `stem`, of images of which a mask hides squares: unless a family says otherwise, zeros."""
        return self.stem(x * mask.visible(*x.shape[2:])[:, None])

    def mask_token(self) -> Auxiliary | None:
        """What a family learns to show where a mask hides the image; None: `masked_stem` needs nothing."""
        return None

    @abstractmethod
    def head(self, x: Tensor) -> Tensor:
        """The last stage's output to logits [B, num_classes]."""

    def transition_modules(self, stage: int) -> Sequence[nn.Module]:
        """The modules that `transition` runs."""
        return ()

    def transition(self, stage: int, x: Tensor) -> Tensor:
        """What precedes a stage's first block: its input from the output of the stage before, or the stem's.

        It runs with the first block, of which every subnet has at least the shortcut.
        """
        return x

    def whole(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block."""
        return block(x)

    def branch(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block without its shortcut; unless a family says otherwise, what it adds to its input."""
        return self.whole(block, x) - x

    def shortcut(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block without its residual branch; unless a family says otherwise, the identity."""
        return x

    def feature_map(self, x: Tensor) -> Tensor:
        """A block's output as [B, C, h, w]."""
        return x

    def has_shortcut(self, block: nn.Module) -> bool:
        """Whether a block adds its input, or a projection of it, to its residual branch."""
        return True

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.name or type(self).__name__

    @property
    def depths(self) -> Depths:
        """Blocks per stage."""
        return tuple(len(stage) for stage in self.stages)

    @property
    def full(self) -> Subnet:
        """The main network as a subnet of itself: every block."""
        return ordered_subnet(self.depths)

    @property
    def classifiers(self) -> Sequence[nn.Module]:
        """The linear layers that end the head: its last module, unless a family says otherwise."""
        return self.head_modules[-1:]

    @property
    def classifier_names(self) -> list[str]:
        """Names in the state dict of the classifiers' parameters, which fit one set of classes."""
        classifier = {parameter for module in self.classifiers for parameter in module.parameters()}
        return [name for name, parameter in self.named_parameters() if parameter in classifier]

    @property
    def without_shortcut(self) -> frozenset[BlockRef]:
        """The blocks without a shortcut: no subnet can do without them, nor run a part of them."""
        return frozenset(ref for ref in self.full if not self.has_shortcut(self.stages[ref.stage][ref.block]))

    def check_sides(self, name: str, sides: Sequence[int]) -> None:
        """Whether images of these sides, which are called `name` in the error, fit the patches.

        Raises:
            ConfigError: one that does not.
        """
        odd = [side for side in sides if side % self.multiple]
        if odd:
            raise ConfigError(
                f"{name} holds {odd[0]}; allowed: multiples of {self.multiple} pixels, the side of "
                f"{self.title}'s patches"
            )

    def keep(self, depths: Sequence[int]) -> None:
        """Become a subnet: of each stage the first `depths` blocks stay, under their names.

        Raises:
            ValueError: depths that the network does not have.
        """
        kept = depths_of(self.as_subnet(tuple(depths)), len(self.depths))
        dropped = {each for stage, depth in zip(self.stages, kept, strict=True) for each in stage[depth:]}
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if child in dropped:
                    delattr(parent, name)

    def block_modules(self, ref: BlockRef) -> list[nn.Module]:
        """The modules that `run_block` runs."""
        block = self.stages[ref.stage][ref.block]
        return [block] if ref.block else [*self.transition_modules(ref.stage), block]

    def run_block(self, ref: BlockRef, x: Tensor) -> Tensor:
        """Run one block, or one part of it; a stage's first after the stage's transition.

        Raises:
            ValueError: a part of a block without a shortcut.
        """
        block = self.stages[ref.stage][ref.block]
        if ref.part != Part.WHOLE and not self.has_shortcut(block):
            raise ValueError(
                f"the subnet holds {ref}; block {ref.block} of stage {ref.stage} has no shortcut; allowed: "
                f"{Part.WHOLE!r}"
            )
        if ref.block == 0:
            x = self.transition(ref.stage, x)
        run = {Part.WHOLE: self.whole, Part.BRANCH: self.branch, Part.SHORTCUT: self.shortcut}[ref.part]
        return run(block, x)

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

    def forward_trees(
        self, inputs: Sequence[Tensor], trees: Sequence[PrefixTree], drops: Sequence[Drop | None] = ()
    ) -> list[list[Tensor]]:
        """Logits of every subnet of every tree, each tree on its own input.

        If the first subnet of the first tree is the main network, its pass runs first and updates the
        running statistics; all other passes leave them alone.

        Args:
            inputs: images [B, 3, H, W], one tensor per tree.
            trees: the subnets to run on each.
            drops: what each has more of; none where they end.

        Returns:
            For each tree, the logits [B, num_classes] of its subnets.
        """
        return [walk.finish() for walk in self._walk(TreeWalk, inputs, trees, drops)]

    def stage_outputs(
        self, inputs: Sequence[Tensor], trees: Sequence[PrefixTree]
    ) -> list[list[tuple[Tensor, ...]]]:
        """As `forward_trees`, but of every subnet each stage's output [B, C, h, w], and no head runs."""
        return [walk.features() for walk in self._walk(FeatureWalk, inputs, trees)]

    def _walk(
        self,
        walk: type[Walk],
        inputs: Sequence[Tensor],
        trees: Sequence[PrefixTree],
        drops: Sequence[Drop | None] = (),
    ) -> list[Walk]:
        """A walk of a kind over each tree, run to its end; the main network's pass alone is tracked."""
        assert len(inputs) == len(trees) >= len(drops)
        (tree, x, drop), *rest = zip_longest(trees, inputs, drops)
        first = walk(self, tree, x, tracked=tree.subnets[0] == self.full, drop=drop)
        with frozen_statistics(self):
            walks = [first, *(walk(self, tree, x, drop=drop) for tree, x, drop in rest)]
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
        """Make a timm model's modules one's own, under their own names; it must not be used afterwards.

        Some are named like methods here, such as `head`: `child` gives them.
        """
        self._modules.update(source.named_children())
        self._parameters.update(source.named_parameters(recurse=False))
        self.num_classes = source.num_classes
        self.reduction = source.feature_info[-1]["reduction"]
        self.drop_rate = float(getattr(source, "drop_rate", 0.0))

    def child(self, name: str) -> Any:
        """A module of one's own by its name."""
        return self._modules[name]

    def get_submodule(self, target: str) -> nn.Module:
        """As `nn.Module`'s, also of modules that are named like methods here."""
        name, _, rest = target.partition(".")
        return (
            self.child(name).get_submodule(rest) if name in self._modules else super().get_submodule(target)
        )


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
        drop: Drop | None = None,
    ) -> None:
        self.network, self.tree, self.before, self.drop = network, tree, before, drop
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
        with self.drop.within(self.network) if self.drop else nullcontext():
            self._run_nodes(stop)

    def _run_nodes(self, stop: int) -> None:
        if self.done == 0:
            self._announce(ROOT)
            self.activations[ROOT] = self._stem()
            del self.input
        for index in range(self.done, stop):
            ref, parent = self.tree.nodes[index]
            self._announce(index)
            x = self.network.run_block(ref, self._read(parent))
            self._take(index, x)
            if self.unread[index]:
                self.activations[index] = x
        self.done = stop

    def _stem(self) -> Tensor:
        if self.drop is None or self.drop.mask is None:
            return self.network.stem(self.input)
        return self.network.masked_stem(self.input, self.drop.mask)

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

    def __init__(
        self,
        network: StagedNetwork,
        tree: PrefixTree,
        x: Tensor,
        *,
        tracked: bool = False,
        drop: Drop | None = None,
    ) -> None:
        self.ends = {leaf: _stage_ends(tree, leaf) for leaf in tree.leaves}
        self.kept = {index for ends in self.ends.values() for index in ends}
        self.outputs: dict[int, Tensor] = {}
        super().__init__(network, tree, x, tracked=tracked, drop=drop)

    def features(self) -> list[tuple[Tensor, ...]]:
        """Run what is left; of each of the tree's subnets the stages' outputs [B, C, h, w], first to last."""
        self.run()
        return [tuple(self.outputs[index] for index in self.ends[leaf]) for leaf in self.tree.leaves]

    def _take(self, index: int, x: Tensor) -> None:
        if index in self.kept:
            self.outputs[index] = self.network.feature_map(x)


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
        auxiliary: what is trained with it, or None.
    """

    def __init__(self, network: StagedNetwork, auxiliary: Auxiliary | None = None) -> None:
        super().__init__()
        self.network, self.auxiliary = network, auxiliary

    def forward(
        self, inputs: Sequence[Tensor], trees: Sequence[PrefixTree], drops: Sequence[Drop | None] = ()
    ) -> list[list[Tensor]]:
        """See `StagedNetwork.forward_trees`, or `Auxiliary.run`."""
        if self.auxiliary is None:
            return self.network.forward_trees(inputs, trees, drops)
        return self.auxiliary.run(self.network, inputs, trees, drops)
