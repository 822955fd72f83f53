"""The prefix tree agrees with separate passes, in logits and gradients, and runs each shared block once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrain.models import StagedNetwork, TreeForward, TreeWalk
from fasttrain.subnets import BlockRef, PrefixTree, Space, Subnet, ordered_subnet, sampling_space
from tests.networks import tiny_images, tiny_mobilenet, tiny_resnet

FAMILIES: tuple[Callable[..., StagedNetwork], ...] = (
    tiny_resnet,
    partial(tiny_resnet, bottleneck=True),
    tiny_mobilenet,
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[StagedNetwork, list[list[Subnet]], list[int]]:
    """A network; subnets for the full-size batch (the main network first) and for several smaller ones."""
    layers = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    network = draw(st.sampled_from(FAMILIES))(layers, seed=draw(st.integers(0, 99)))
    sampling = draw(st.sampled_from(["ordered", "stochastic", "raw"]))
    space: Space = sampling_space(sampling, "default", layers, network.without_shortcut)
    seeds = st.integers(0, 10_000)

    def some(least: int) -> list[Subnet]:
        drawn = [
            space.draw(np.random.default_rng(seed))
            for seed in draw(st.lists(seeds, min_size=least, max_size=4))
        ]
        return drawn + drawn[:1] if draw(st.booleans()) else drawn  # with a duplicate or without

    sides = draw(st.lists(st.sampled_from([16, 24, 40]), max_size=2))
    return network, [[network.full, *some(0)], *(some(1) for _ in sides)], [32, *sides]


def logits_and_gradients(
    network: StagedNetwork, outputs: list[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Each output, and the gradient of a fixed random function of all of them."""
    random = torch.Generator().manual_seed(1)
    total = sum(
        (output.tanh() * torch.randn(output.shape, generator=random, dtype=output.dtype)).sum()
        for output in outputs
    )
    gradients = torch.autograd.grad(total, list(network.parameters()), allow_unused=True)  # type: ignore[arg-type]
    zeros = [
        torch.zeros_like(p) if g is None else g for p, g in zip(network.parameters(), gradients, strict=True)
    ]
    return [output.detach() for output in outputs], zeros


def count_block_calls(network: StagedNetwork) -> Counter[str]:
    """Counts the blocks that the network runs from now on."""
    counter: Counter[str] = Counter()
    run_block = network.run_block

    def counting(ref: BlockRef, x: torch.Tensor) -> torch.Tensor:
        counter["blocks"] += 1
        return run_block(ref, x)

    network.run_block = counting  # type: ignore[method-assign]
    return counter


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases())
def test_tree_equals_separate_passes(case: tuple[StagedNetwork, list[list[Subnet]], list[int]]) -> None:
    network, groups, sides = case
    network.train()
    batches = [tiny_images(3, side, seed) for seed, side in enumerate(sides)]
    trees = [PrefixTree(group) for group in groups]

    separate = [
        network(batch, subnet) for batch, group in zip(batches, groups, strict=True) for subnet in group
    ]
    expected_logits, expected_gradients = logits_and_gradients(network, separate)

    calls = count_block_calls(network)
    shared = [each for group in TreeForward(network)(batches, trees) for each in group]
    logits, gradients = logits_and_gradients(network, shared)

    assert calls["blocks"] == sum(map(len, trees))
    for ours, theirs in zip(logits, expected_logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*(st.integers(1, depth) for depth in (3, 4, 6, 3))), min_size=1, max_size=8))
def test_nodes_are_the_distinct_prefixes(depths: list[tuple[int, ...]]) -> None:
    subnets = [ordered_subnet(each) for each in depths]
    tree = PrefixTree(subnets)
    prefixes = {subnet[:length] for subnet in subnets for length in range(1, len(subnet) + 1)}
    assert len(tree) == len(prefixes)
    for subnet, leaf in zip(subnets, tree.leaves, strict=True):
        path, node = [], leaf
        while node != -1:
            path.append(tree.nodes[node].ref)
            assert tree.nodes[node].parent < node
            node = tree.nodes[node].parent
        assert tuple(reversed(path)) == subnet
    assert sum(tree.children) == len(tree)
    assert [node.ref for node in tree.nodes[: tree.trunk]] == list(subnets[0])


def test_the_worst_draw_of_space3() -> None:
    """Six distinct subnets: 3 blocks of stage 1 and 4 of stage 2 once, 2 x 6 of stage 3, 6 x 3 of stage 4."""
    depths = [(3, second, third, 3) for third in (6, 5, 4) for second in (3, 4)]
    tree = PrefixTree([ordered_subnet(each) for each in depths])
    assert len(tree) == 3 + 4 + 12 + 18


def test_a_tree_needs_subnets() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        PrefixTree([])
    with pytest.raises(ValueError, match="at least one block"):
        PrefixTree([()])


def test_activations_are_released_once_read() -> None:
    """Without gradients, the walk holds no more activations than the tree is wide at any moment."""
    network = tiny_resnet((2, 2, 2)).eval()
    subnets = list(sampling_space("ordered", "default", (2, 2, 2)))  # type: ignore[call-overload]
    with torch.no_grad():
        walk = TreeWalk(network, PrefixTree(subnets), tiny_images(2, 32))
        most = 0
        read = walk._read

        def watching(index: int) -> torch.Tensor:
            nonlocal most
            most = max(most, len(walk.activations))
            return read(index)

        walk._read = watching  # type: ignore[method-assign]
        walk.finish()
    assert most <= 4  # one per stage, and the stem
    assert not walk.activations
