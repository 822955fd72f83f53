"""What a step of a method computes: FLOPs and block calls, without running it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from statistics import fmean

import torch

from fasttrain import config
from fasttrain.config import IMAGENET_MEAN, IMAGENET_STD
from fasttrain.flops import META, meta_network, passes_flops, side_costs
from fasttrain.methods import AugSub, Common, Plan, Stimulative
from fasttrain.models import StagedNetwork
from fasttrain.randomness import draw_sizes
from fasttrain.subnets import Draw, PrefixTree, Subnet

IMAGES = 64  # of a planned batch, which subnets may see a share of


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Of a training step, or the mean of several.

    Attributes:
        flops: forward and backward, per image.
        calls: residual blocks run, whatever the batch.
    """

    flops: float
    calls: float


def parameters(name: str, classes: int = 1000) -> int:
    """Trainable numbers of a network.

    Raises:
        ConfigError: an unknown name.
    """
    return sum(parameter.numel() for parameter in meta_network(name, classes).parameters())


def plan_cost(network: StagedNetwork, plan: Plan) -> Cost:
    """Of one forward and backward pass over a plan's trees, per image of its first input."""
    return Cost(passes_flops(network, plan.passes) / len(plan.inputs[0]), plan.block_calls)


def separate_cost(network: StagedNetwork, passes: Iterable[tuple[Subnet, int]]) -> Cost:
    """Of one pass per subnet, each on images of its own side: nothing is shared."""
    flops, calls = 0.0, 0
    for subnet, side in passes:
        flops += side_costs(network, side).tree(PrefixTree([subnet]))
        calls += len(subnet)
    return Cost(flops, calls)


def plain_cost(name: str, crop: int, classes: int = 1000) -> Cost:
    """Of a step of common training."""
    network = meta_network(name, classes)
    return separate_cost(network, [(network.full, crop)])


def step_cost(
    name: str, options: config.Method, crop: int, *, classes: int = 1000, draws: int = 24, seed: int = 0
) -> Cost:
    """The mean over consecutive draws of a method's step, as the trainer runs it.

    Args:
        name: of the network.
        options: the method.
        crop: side of the full-size batch, pixels.
        classes: outputs of the classifier.
        draws: how many, from epoch 0.
        seed: of the draws.

    Raises:
        ConfigError: an unknown network, or a space that does not fit it.
    """
    network = meta_network(name, classes)
    images = torch.empty(IMAGES, 3, crop, crop, device=META)
    if options.name == "common":
        return plan_cost(network, Common(network.full).plan(images, (), epoch=0, step=0))
    if options.name == "augsub":
        return plan_cost(network, AugSub(options, network, seed=seed).plan(images, (), epoch=0, step=0))
    method = _stimulative(network, options, seed)
    costs = []
    for step in range(draws):
        draw = method.draw(0, step)
        sides: tuple[int, ...] = ()
        if options.subnet_inputs == "downscaled":
            sides = draw_sizes(options.sizes, options.sizes_per_step, seed=seed, epoch=0, step=step)
        small = [torch.empty(IMAGES, 3, side, side, device=META) for side in sides]
        costs.append(plan_cost(network, method.assemble(images, small, draw, epoch=0)))
    return _mean(costs)


@functools.cache
def naive_cost(
    name: str, options: config.Method, crop: int, *, classes: int = 1000, draws: int = 24, seed: int = 0
) -> Cost:
    """As `step_cost`, but each subnet a pass of its own, at its own of the method's sides if it is cascaded.

    Raises:
        ConfigError: an unknown network, or a space that does not fit it.
    """
    network = meta_network(name, classes)
    method = _stimulative(network, options, seed)
    drawn = (method.draw(0, step) for step in range(draws))
    return _mean([separate_cost(network, [(network.full, crop), *_own_sides(draw, crop)]) for draw in drawn])


def _stimulative(network: StagedNetwork, options: config.Method, seed: int) -> Stimulative:
    return Stimulative(
        options,
        network.full,
        network.depths,
        seed=seed,
        epochs=1,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        without_shortcut=network.without_shortcut,
    )


def _own_sides(draw: Draw, crop: int) -> list[tuple[Subnet, int]]:
    return list(zip(draw.subnets, draw.sizes or (crop,) * len(draw.subnets), strict=True))


def _mean(costs: list[Cost]) -> Cost:
    return Cost(fmean(cost.flops for cost in costs), fmean(cost.calls for cost in costs))
