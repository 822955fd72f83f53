"""What the analyses compute, against references written out plainly, in float64."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.analysis.amplitude import amplitudes
from fasttrain.analysis.bound import bound_of, sides
from fasttrain.analysis.delete_several import combinations
from fasttrain.analysis.deletion import deletable, name_of, without
from fasttrain.analysis.kl import kl_to_first
from fasttrain.analysis.layers import counts_of
from fasttrain.analysis.permute import draw_orders, kendall_tau, movable, permuted, swaps_of
from fasttrain.analysis.receptive_field import receptive_field, square_side
from fasttrain.analysis.subnets import best_within
from fasttrain.flops import ForwardCosts, meta_network
from fasttrain.models import StagedNetwork
from fasttrain.subnets import BlockRef, ordered_space, ordered_subnet
from tests.networks import tiny_images, tiny_mobilenet, tiny_resnet

LAYERS = (2, 3)


def logits(networks: int, seed: int = 0) -> Tensor:
    """Random logits [K, 6, 5], float64."""
    return 3 * torch.randn(networks, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(network: StagedNetwork, x: Tensor, deleted: set[BlockRef]) -> Tensor:
    """A ResNet without some residual branches: identity shortcuts pass on, projections stay."""
    x = network.stem(x)
    for stage, blocks in enumerate(network.stages):
        for index, block in enumerate(blocks):
            if BlockRef(stage, index) not in deleted:
                x = block(x)
            elif isinstance(block.downsample, nn.Module):
                x = F.relu(block.downsample(x))
    return network.head(x)


@pytest.mark.parametrize("deleted", [[], [(0, 1)], [(1, 0)], [(0, 0), (1, 0), (1, 2)]])
def test_deletion_leaves_the_shortcut(deleted: list[tuple[int, int]]) -> None:
    network = tiny_resnet(LAYERS).eval()
    blocks = {BlockRef(*ref) for ref in deleted}
    images = tiny_images(3, 32)
    ours = network(images, without(network, blocks))
    torch.testing.assert_close(ours, by_hand(network, images, blocks), rtol=0, atol=1e-12)


def test_blocks_without_a_shortcut_are_never_deleted() -> None:
    assert list(map(name_of, deletable(tiny_resnet(LAYERS)))) == ["1.1", "1.2", "2.1", "2.2", "2.3"]
    # the first block of the mobilenet's second stage changes the width
    assert list(map(name_of, deletable(tiny_mobilenet(LAYERS)))) == ["1.1", "1.2", "2.2", "2.3"]


def test_combinations_are_all_or_so_many_different_ones_from_the_seed() -> None:
    blocks = ordered_subnet((3, 4))
    assert combinations(blocks, 2, 21, 0) == list(itertools.combinations(blocks, 2))
    assert combinations(blocks, 3, 0, 0) == list(itertools.combinations(blocks, 3))
    drawn = combinations(blocks, 3, 20, 0)
    assert len(set(drawn)) == 20
    assert set(drawn) < set(itertools.combinations(blocks, 3))
    assert drawn == combinations(blocks, 3, 20, 0)
    assert drawn != combinations(blocks, 3, 20, 1)


def test_permuted_blocks_run_in_their_new_order() -> None:
    network = tiny_resnet((2, 4)).eval()
    images = tiny_images(3, 32)
    x = network.stem(images)
    for stage, block in ((0, 0), (0, 1), (1, 0), (1, 2), (1, 3), (1, 1)):
        x = network.stages[stage][block](x)
    ours = network(images, permuted(network.full, (0, 1, 2, 4, 5, 3)))
    torch.testing.assert_close(ours, network.head(x), rtol=0, atol=1e-12)


def test_blocks_that_change_the_shape_stay_in_their_place() -> None:
    # ResNet-50's first blocks all widen; the small network's first stage keeps its width
    assert movable(tiny_resnet((3, 4, 6, 3)), "resnet50", 64)[0] == [1, 2]
    network = tiny_resnet((3, 3, 3))
    assert movable(network, "cifar_resnet20", 32) == [[0, 1, 2], [4, 5], [7, 8]]


def test_orders_are_all_or_drawn_by_swaps() -> None:
    stages = [[0, 1, 2], [4, 5]]
    every = draw_orders(stages, 6, 16, 0)
    assert len(every) == len(set(every)) == 12
    assert every[0] == (0, 1, 2, 3, 4, 5)
    assert all(order[3] == 3 and set(order[4:]) == {4, 5} for order in every)
    assert Counter(map(swaps_of, every)) == {0: 1, 1: 4, 2: 5, 3: 2}
    few = draw_orders(stages, 6, 2, 0)
    assert few[0] == every[0]
    assert set(few) < set(every)
    assert few == draw_orders(stages, 6, 2, 0) != draw_orders(stages, 6, 2, 3)


def test_kendall_tau_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for length in (1, 2, 5, 9):
        order = rng.permutation(length).tolist()
        expected = stats.kendalltau(range(length), order).statistic if length > 1 else 1.0
        assert kendall_tau(order) == pytest.approx(expected)
    assert kendall_tau([3, 2, 1, 0]) == -1


def test_kl_and_probabilities_against_the_definitions() -> None:
    given, targets = logits(3), torch.tensor([0, 1, 2, 3, 4, 0])
    p = given.softmax(2)
    expected = (p[0] * (p[0] / p).log()).sum((1, 2))
    torch.testing.assert_close(kl_to_first(list(given)), expected)
    assert kl_to_first(list(given))[0] == pytest.approx(0, abs=1e-12)
    measured = sides(list(given), targets)
    torch.testing.assert_close(measured[:, 0], expected)
    torch.testing.assert_close(measured[:, 1], p[:, range(6), targets].sum(1))


def test_the_bound_holds_and_is_tight_where_little_separates() -> None:
    assert bound_of(0.08) == pytest.approx(0.2)
    assert bound_of(50) == 1
    for seed in range(20):  # any two networks keep it
        kl, right = (sides(list(logits(2, seed)), torch.arange(6) % 5) / 6).T.tolist()
        assert abs(right[0] - right[1]) <= bound_of(kl[1])
    # two classes, p(y) = 1/2 and q(y) = 1/2 - e: KL = -log(1 - 4 e^2) / 2, which is 2 e^2 for small e
    e = 1e-2
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.5 - e, 0.5 + e])
    (_, _), (kl_q, right_q) = sides(
        [p.log()[None].double(), q.log()[None].double()], torch.tensor([0])
    ).tolist()
    assert kl_q == pytest.approx(-math.log(1 - 4 * e**2) / 2, rel=1e-3)
    assert 0.5 - right_q == pytest.approx(bound_of(kl_q), rel=1e-3)


def test_amplitudes_against_numpy() -> None:
    given = logits(2)
    norms = np.linalg.norm(given.numpy(), axis=2)
    expected = np.stack([norms.sum(1), (norms**2).sum(1), given.numpy().std(2).sum(1)], 1)
    np.testing.assert_allclose(amplitudes(list(given)), expected)


def test_the_receptive_field_of_a_convolution_is_its_kernel() -> None:
    convolution = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
    field = receptive_field(convolution, tiny_images(2, 9))
    kernel = convolution.weight.detach().sum(0).abs().sum(0)
    assert field.shape == (9, 9)
    torch.testing.assert_close(field[3:6, 3:6], kernel)
    assert field.sum() == pytest.approx(float(kernel.sum()))
    # of an even map the four units around the middle count
    pixel = nn.Conv2d(3, 1, 1, bias=False).double()
    assert receptive_field(pixel, tiny_images(1, 8)).nonzero().tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]


def test_squares_hold_their_share() -> None:
    field = torch.zeros(9, 9)
    field[3:6, 3:6] = 1
    field[4, 4] = 8
    assert square_side(field, 0.5) == 1
    assert square_side(field, 0.75) == 2  # linear between 1 and 3
    field[0, 0] = 4
    assert square_side(field, 0.6) == pytest.approx(2)  # 1 holds 0.4, 3, 5 and 7 hold 0.8, 9 holds all
    assert square_side(field, 0.9) == pytest.approx(8)
    assert square_side(torch.ones(8, 8), 0.25) == 4


def test_counts_group_by_blocks_kept() -> None:
    depths = [(1, 1), (1, 2), (2, 1), (2, 2)]
    counts = counts_of("x", depths, [10.0, 30.0, 20.0, 60.0])
    assert [(c.stage, c.blocks, c.subnets, c.mean, c.deviation, c.others_whole) for c in counts] == [
        (1, 1, 2, 20, 10, 30),
        (1, 2, 2, 40, 20, 60),
        (2, 1, 2, 15, 5, 20),
        (2, 2, 2, 45, 15, 60),
    ]


def test_the_budget_takes_the_best_that_it_affords() -> None:
    costs, top1 = [1.0, 2.0, 3.0, 4.0], [50.0, 70.0, 70.0, 90.0]
    assert best_within(3.5, costs, top1) == 1
    assert best_within(4, costs, top1) == 3
    assert best_within(0.5, costs, top1) is None


def test_multiply_adds_are_the_papers() -> None:
    costs = ForwardCosts(meta_network("resnet50"), 224)
    assert costs.of(ordered_subnet((3, 4, 6, 3))) / 1e9 == pytest.approx(4.09, abs=0.01)  # 4.1 in the papers
    small = ForwardCosts(meta_network("cifar_resnet20", 10), 32)
    by_depths = {
        depths: small.of(ordered_subnet(depths)) for depths in itertools.product((1, 2, 3), repeat=3)
    }
    assert len(by_depths) == len(ordered_space("default", (3, 3, 3)))
    # a block of two 3x3 convolutions of 16 channels on 32x32 pixels
    assert by_depths[2, 1, 1] - by_depths[1, 1, 1] == 2 * 9 * 16 * 16 * 32 * 32
