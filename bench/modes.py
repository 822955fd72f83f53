"""The training steps that `python -m bench step` compares, each on the same images and draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain import config
from fasttrain.config import IMAGENET_MEAN, IMAGENET_STD
from fasttrain.errors import ConfigError, instead
from fasttrain.methods import AugSub, Common, Method, Plan, Stimulative
from fasttrain.models import StagedNetwork, batch_norms
from fasttrain.randomness import draw_sizes
from fasttrain.recipes.imagenet import FAST_SIZES, FAST_SIZES_CROP
from fasttrain.step import TrainStep
from fasttrain.subnets import Draw, OrderedSpace, Subnet, depths_of

from . import naive
from .variants import VARIANTS, Variant


def default_sizes(crop: int) -> tuple[int, ...]:
    """The recipe's sizes in proportion to a crop, as multiples of 16 (of 4 below 128 pixels)."""
    unit = 16 if crop >= 128 else 4
    sides = {unit * round(size * crop / FAST_SIZES_CROP / unit) for size in FAST_SIZES}
    return tuple(sorted(min(crop, max(unit, side)) for side in sides))


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step reads.

    Attributes:
        images: full-size batch [B, 3, H, W].
        small: downscaled batches, as the loader hands them over.
        targets: class indices, int64 [B].
    """

    images: Tensor
    small: tuple[Tensor, ...]
    targets: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All of the batch's tensors."""
        return (self.images, *self.small, self.targets)


@dataclass(frozen=True, slots=True)
class Setup:
    """What all modes have in common.

    Attributes:
        subnets: K, subnets per step.
        space: sampling space of the modes with K subnets.
        crop: side of the full-size batch, pixels.
        sizes: sides of the downscaled batches, pixels.
        seed: of the draws.
    """

    subnets: int
    space: str
    crop: int
    sizes: tuple[int, ...]
    seed: int


def _downscaled(setup: Setup, **changes: object) -> config.Method:
    values = {
        "subnets": setup.subnets,
        "space": setup.space,
        "normalize": "layer_norm",
        "subnet_inputs": "downscaled",
        "sizes": setup.sizes,
    }
    return config.Method(**(values | changes))  # type: ignore[arg-type]


def _cascaded(setup: Setup) -> config.Method:
    return _downscaled(setup, subnet_inputs="cascaded", sizes=naive.sizes(setup.crop))


def _common(setup: Setup) -> config.Method:
    return config.Method(name="common", subnets=0)


def _augsub(setup: Setup, drop: Literal["masking", "path"]) -> config.Method:
    square = max(1, round(setup.crop / 7))
    return config.Method(name="augsub", subnets=0, drop=drop, drop_ratio=0.5, mask_square=square)


MODES: dict[str, Callable[[Setup], config.Method]] = {
    "ct": _common,
    "timm": _common,
    "naive": _cascaded,
    "stpp-r1": lambda setup: _downscaled(setup, sizes_per_step=1),
    "stpp-r2": lambda setup: _downscaled(setup, sizes_per_step=2),
    "stpp-r3": lambda setup: _downscaled(setup, sizes_per_step=3),
    "stpp-rk": lambda setup: _downscaled(setup, sizes_per_step=setup.subnets),
    "stpp-half": lambda setup: _downscaled(setup, subnet_share=0.5),
    "stpp-coupled": lambda setup: _downscaled(setup, draws="coupled"),
    "stpp-cascaded": _cascaded,
    "stpp-split": lambda setup: _downscaled(setup, backward="split"),
    "st": lambda setup: config.Method(subnets=1),
    "st-split": lambda setup: config.Method(subnets=1, backward="split"),
    "st-k": lambda setup: config.Method(subnets=setup.subnets, space=setup.space),
    "augsub-mask": lambda setup: _augsub(setup, "masking"),
    "augsub-path": lambda setup: _augsub(setup, "path"),
}
"""Name to method: `ct` common training; `timm` the same with timm's own model and a plain step; `naive` the
published code's own step; `stpp-r*` ST++ with so many downscaled sizes per step (`rk`: one per subnet);
`stpp-half` one size, subnets on half of the batch; `stpp-coupled` one size, coupled draws; `stpp-cascaded`
the published inputs through our code; `st` one full-size subnet of the default space; `st-k` K full-size
ones; `*-split` main network and subnets in passes of their own; `augsub-*` AugSub by masking or drop-path at
ratio 0.5, its squares a seventh of the crop. A variant may follow (see `bench.variants`): `ct:plain`."""


class Mode:
    """One kind of training step, by our code, executed in one way.

    Attributes:
        name: its key in `MODES`, and its variant's after a colon unless that is the mode's own.
        setup: what all modes share.
        options: the method's configuration.
        variant: how it is executed.
    """

    def __init__(self, name: str, variant: Variant, setup: Setup, network: StagedNetwork) -> None:
        """For one network.

        Raises:
            ConfigError: options that do not fit each other or the network.
        """
        self.name, self.variant, self.setup = name, variant, setup
        self.options = MODES[name.partition(":")[0]](setup)
        self.common = Common(network.full, kernels=variant.kernels)
        self.method = Stimulative(
            self.options,
            network.full,
            network.depths,
            seed=setup.seed,
            epochs=1,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            kernels=variant.kernels,
        )
        self.own: Method = self.method if self.options.name == "stimulative" else self.common
        if self.options.name == "augsub":
            self.own = AugSub(self.options, network, seed=setup.seed, kernels=variant.kernels)

    @property
    def space(self) -> OrderedSpace:
        """The space that subnets are drawn from."""
        assert isinstance(self.method.space, OrderedSpace)
        return self.method.space

    def draw(self, step: int) -> Draw:
        """Subnets and input sides of a step of epoch 0."""
        draw = self.method.draw(0, step)
        if self.options.subnet_inputs != "downscaled":
            return draw
        sides = draw_sizes(
            self.options.sizes, self.options.sizes_per_step, seed=self.setup.seed, epoch=0, step=step
        )
        return dataclasses.replace(draw, sizes=sides)

    def worst_draw(self) -> Draw:
        """The draw that needs most memory: the largest sides, on each the subnets with most tree nodes."""
        options, full = self.options, self.method.full
        count = options.subnets
        sides = tuple(sorted(set(options.sizes), reverse=True)[: options.sizes_per_step])
        trees: list[set[Subnet]] = [set() for _ in sides]
        if options.subnet_inputs == "full":
            trees = [prefixes(full) if options.backward == "joint" else set()]
        if options.subnet_inputs == "cascaded":
            sides, trees = sides[:1] * count, [set() for _ in range(count)]
        if options.draws == "coupled":
            subnets = widest_coupled(self.space)
        else:
            subnets = widest(list(self.space), count, trees)
        return Draw(tuple(subnets), (count / max(1, len(subnets)),) * len(subnets), sides)

    def batch(self, images: Tensor, targets: Tensor, draw: Draw) -> Batch:
        """What a step reads: the full-size batch and the downscaled ones, which the loader makes."""
        sides = draw.sizes if self.options.subnet_inputs == "downscaled" else ()
        return Batch(images, tuple(downscale(images, side) for side in sides), targets)

    def plan(self, batch: Batch, draw: Draw) -> Plan:
        """The forward pass of a draw."""
        if self.own is self.method:
            return self.method.assemble(batch.images, batch.small, draw, epoch=0)
        return self.own.plan(batch.images, (), epoch=0, step=0)

    def backward(self, step: TrainStep, batch: Batch, draw: Draw) -> Tensor:
        """Forward, loss and backward, as the trainer runs them; the loss, detached."""
        reduce = None if self.options.backward == "joint" else _keep
        own = dataclasses.replace(step, method=self.own, reduce=reduce)
        return own.backward(self.plan(batch, draw), batch.targets).total

    def block_calls(self, batch: Batch, draw: Draw) -> int:
        """Residual blocks that a step runs."""
        return self.plan(batch, draw).block_calls


def _keep(parameters: Iterable[nn.Parameter]) -> None:
    """One process's gradients are their own mean."""


class Naive(Mode):
    """The published code's step (see `bench.naive`), on the same draws."""

    def backward(self, step: TrainStep, batch: Batch, draw: Draw) -> Tensor:
        """One pass after the other, in float32; the sum of the losses, detached."""
        network = network_of(step)
        depths = [depths_of(subnet, len(network.depths)) for subnet in draw.subnets]
        return naive.forward_backward(network, batch.images, batch.targets, depths, draw.sizes)

    def block_calls(self, batch: Batch, draw: Draw) -> int:
        """Residual blocks that a step runs."""
        return sum(map(len, (self.method.full, *draw.subnets)))


class Timm(Mode):
    """Common training as timm's users do it: its own model, autocast, cross-entropy."""

    def backward(self, step: TrainStep, batch: Batch, draw: Draw) -> Tensor:
        """Forward, loss and backward; the loss, detached."""
        with step.precision.autocast():
            loss = F.cross_entropy(step.forward(batch.images), batch.targets)
        step.scaler.scale(loss).backward()
        return loss.detach()


_CLASSES = {"naive": Naive, "timm": Timm}
_OWN_VARIANTS = {"naive": "published", "timm": "plain"}


def build_mode(name: str, setup: Setup, network: StagedNetwork, device: torch.device, precision: str) -> Mode:
    """The mode called `name`, such as `ct` or `ct:plain`; `precision` holds unless its variant has its own.

    Raises:
        ConfigError: an unknown name, or a variant that the device or the network does not allow.
    """
    mode, _, variant = name.partition(":")
    if mode not in MODES:
        raise ConfigError(f"--modes holds {name!r}; {instead(name, MODES)}")
    variant = variant or _OWN_VARIANTS.get(mode, "ours")
    if variant not in VARIANTS or (mode == "naive" and variant != "published"):
        allowed = ", ".join(VARIANTS) if mode != "naive" else "published"
        raise ConfigError(f"--modes holds {name!r}; allowed after the colon: {allowed}")
    executed = VARIANTS[variant](device, precision)
    if not any(type(layer) is nn.BatchNorm2d for layer in batch_norms(network)):
        executed = dataclasses.replace(executed, batch_norm="torch")  # there is nothing that could be fused
    return _CLASSES.get(mode, Mode)(name, executed, setup, network)


def network_of(step: TrainStep) -> StagedNetwork:
    """The network that a step trains."""
    network = step.forward.network
    assert isinstance(network, StagedNetwork)
    return network


def downscale(images: Tensor, side: int) -> Tensor:
    """Images [B, 3, H, W] resized to [B, 3, side, side] in their memory format."""
    small = F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)
    format_ = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
    return small.contiguous(memory_format=format_ or torch.contiguous_format)


def prefixes(subnet: Subnet) -> set[Subnet]:
    """The tree nodes of a subnet, each named by the blocks from the stem to it."""
    return {subnet[:length] for length in range(1, len(subnet) + 1)}


def widest(candidates: Sequence[Subnet], count: int, trees: Sequence[set[Subnet]]) -> list[Subnet]:
    """`count` subnets, dealt in turn over `trees`, that together make most tree nodes.

    Greedy, which for the union of paths in a tree is optimal (Pardi and Goldman 2005).

    Args:
        candidates: subnets to choose from.
        count: how many; repetitions come last.
        trees: nodes (see `prefixes`) that are there already; added to.
    """
    chosen: list[Subnet] = []
    for index in range(count):
        nodes = trees[index % len(trees)]
        fresh = [subnet for subnet in candidates if subnet not in nodes] or candidates
        best = max(fresh, key=lambda subnet: len(prefixes(subnet) - nodes))
        nodes |= prefixes(best)
        chosen.append(best)
    return chosen


def widest_coupled(space: OrderedSpace) -> list[Subnet]:
    """The coupled draw with most tree nodes: the early stages at full depth."""
    free = [stage for stage, choices in enumerate(space.choices) if choices > 1]
    varied = free[-1] if free else 0
    return [subnet for subnet in space if _full_except(space, subnet, varied)]


def _full_except(space: OrderedSpace, subnet: Subnet, varied: int) -> bool:
    depths = depths_of(subnet, len(space.depths))
    return all(depths[stage] == full for stage, full in enumerate(space.depths) if stage != varied)


def tree_key(mode: Mode, batch: Batch, draw: Draw) -> tuple[object, ...]:
    """What a step's FLOPs depend on: two steps with equal keys run the same operations."""
    if isinstance(mode, Naive):
        return ("naive", draw.subnets, draw.sizes)
    plan = mode.plan(batch, draw)
    return tuple(
        (own.images, own.side, own.tree.nodes, frozenset(own.tree.leaves), own.kept) for own in plan.passes
    )
