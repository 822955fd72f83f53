"""Sampling spaces: sizes, rules, uniform draws, and what they refuse."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from fasttrain.errors import ConfigError
from fasttrain.randomness import draw_sizes
from fasttrain.subnets import (
    BlockRef,
    OrderedSpace,
    Part,
    depths_of,
    draw_subnets,
    ordered_space,
    ordered_subnet,
    sample_distinct,
    sampling_space,
)

RESNET50 = (3, 4, 6, 3)
PUBLISHED = {  # blocks kept per stage: golden/README.md, point 9
    "default": ((1, 3), (1, 4), (1, 6), (1, 3)),
    "space1": ((2, 3), (2, 4), (2, 6), (2, 3)),
    "space2": ((2, 3), (2, 4), (1, 6), (1, 3)),
    "space3": ((3, 3), (3, 4), (3, 6), (3, 3)),
    "space4": ((3, 3), (3, 4), (2, 6), (2, 3)),
    "space5": ((3, 3), (4, 4), (4, 6), (3, 3)),
    "space6": ((3, 3), (3, 4), (3, 6), (2, 3)),
    "space7": ((3, 3), (2, 4), (2, 6), (3, 3)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_spaces_hold_exactly_their_subnets(name: str) -> None:
    space = ordered_space(name, RESNET50)
    expected = {
        ordered_subnet(depths)
        for depths in itertools.product(*(range(low, high + 1) for low, high in PUBLISHED[name]))
    }
    assert set(space) == expected
    assert len(space) == len(expected) == len(list(space))


@pytest.mark.parametrize("depths", [(3, 4, 23, 3), (3, 8, 36, 3)])
def test_deeper_published_networks_use_one_to_all(depths: tuple[int, ...]) -> None:
    assert ordered_space("default", depths) == OrderedSpace((1, 1, 1, 1), depths)


def test_rules_and_lists() -> None:
    assert ordered_space("min=2", (2, 9, 1)).minimum == (2, 2, 1)
    assert ordered_space("part=0.5", (2, 9, 1)).minimum == (1, 5, 1)
    assert ordered_space("3,3-4,3-6,3", RESNET50) == ordered_space("space3", RESNET50)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "space8",
        "min=0",
        "min=x",
        "part=0",
        "part=1.5",
        "part=nan",
        "3,4",
        "0-3,1,1,1",
        "4,4,6,3",
        "3-2,4,6,3",
    ],
)
def test_bad_spaces_name_what_is_allowed(spec: str) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        ordered_space(spec, RESNET50)


def test_resnet50_spaces_are_refused_elsewhere() -> None:
    with pytest.raises(ConfigError, match="space3"):
        ordered_space("space3", (2, 2, 2, 2))


def chi_square(counts: Counter, cells: int, draws: int) -> float:
    """Pearson's statistic against the uniform distribution, in standard deviations above its mean."""
    expected = draws / cells
    missing = (cells - len(counts)) * expected
    statistic = sum((count - expected) ** 2 / expected for count in counts.values()) + missing
    return (statistic - (cells - 1)) / math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize(
    ("sampling", "spec", "depths"),
    [
        ("ordered", "default", (3, 2, 2)),
        ("stochastic", "default", (3, 2, 2)),
        ("raw", "default", (2, 2)),
    ],
)
def test_draws_are_uniform_over_the_space(sampling: str, spec: str, depths: tuple[int, ...]) -> None:
    space = sampling_space(sampling, spec, depths)
    draws = 4000
    counts = Counter(
        draw_subnets(space, 1, coupled=False, seed=3, epoch=e, step=s).subnets[0]
        for e in range(2)
        for s in range(draws // 2)
    )
    assert len(counts) == len(space)
    assert chi_square(counts, len(space), draws) < 5


def test_stochastic_subnets_keep_each_stages_first_block() -> None:
    space = sampling_space("stochastic", "default", (3, 4))
    rng = np.random.default_rng(0)
    for _ in range(200):
        subnet = space.draw(rng)
        assert {ref.stage for ref in subnet if ref.block == 0} == {0, 1}
        assert list(subnet) == sorted(subnet)


def test_raw_subnets_use_every_block_in_part() -> None:
    subnet = sampling_space("raw", "default", (2, 3)).draw(np.random.default_rng(0))
    assert [ref[:2] for ref in subnet] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert {ref.part for ref in subnet} <= {Part.BRANCH, Part.SHORTCUT}


def test_raw_subnets_run_blocks_without_a_shortcut_whole() -> None:
    whole = frozenset({BlockRef(0, 0), BlockRef(1, 0)})
    space = sampling_space("raw", "default", (2, 3), whole)
    drawn = {space.draw(np.random.default_rng(seed)) for seed in range(100)}
    assert len(drawn) == len(space) == 2**3
    for subnet in drawn:
        assert [ref[:2] for ref in subnet] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
        assert {ref for ref in subnet if ref.part == Part.WHOLE} == whole


def test_draws_are_functions_of_seed_epoch_and_step() -> None:
    space = ordered_space("default", RESNET50)

    def draws(seed: int, epoch: int) -> list:
        return [draw_subnets(space, 6, coupled=False, seed=seed, epoch=epoch, step=s) for s in range(20)]

    assert draws(0, 0) == draws(0, 0)
    assert len({str(draws(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_neighbouring_steps_share_no_random_numbers() -> None:
    """A counter that counted drawn numbers in the step's own word would repeat the next step's."""
    space = ordered_space("default", (50, 50, 50, 50))
    seen: Counter = Counter()
    for step in range(50):
        draw = draw_subnets(space, 32, coupled=False, seed=0, epoch=0, step=step)
        seen.update(depths_of(subnet, 4) for subnet in draw.subnets)
    assert max(seen.values()) == 1  # 1,600 out of 6,250,000


@pytest.mark.parametrize("name", ["default", "space3", "space5"])
def test_coupled_draws_have_the_independent_marginals(name: str) -> None:
    """The weighted number of times that each depth of each stage occurs is that of the uniform draw."""
    space, count, draws = ordered_space(name, RESNET50), 6, 6000
    totals: Counter = Counter()
    for step in range(draws):
        draw = draw_subnets(space, count, coupled=True, seed=1, epoch=0, step=step)
        assert math.isclose(sum(draw.weights), count)
        for subnet, weight in zip(draw.subnets, draw.weights, strict=True):
            totals[depths_of(subnet, 4)] += weight  # type: ignore[assignment]
    assert len(totals) == len(space)
    expected = draws * count / len(space)
    for total in totals.values():
        assert abs(total - expected) < 0.35 * expected  # at least 80 draws of each tree: 4 deviations


def test_coupled_draws_take_every_depth_of_the_last_free_stage() -> None:
    draw = draw_subnets(ordered_space("space3", RESNET50), 6, coupled=True, seed=0, epoch=0, step=0)
    depths = [depths_of(subnet, 4) for subnet in draw.subnets]
    assert [d[2] for d in depths] == [3, 4, 5, 6]
    assert len({d[1] for d in depths}) == 1
    assert draw.weights == (1.5,) * 4


def test_sizes_come_from_the_list() -> None:
    sizes = [draw_sizes((96, 128, 192), 2, seed=0, epoch=0, step=step) for step in range(100)]
    assert {size for pair in sizes for size in pair} == {96, 128, 192}
    assert sizes == [draw_sizes((96, 128, 192), 2, seed=0, epoch=0, step=step) for step in range(100)]


@pytest.mark.parametrize("sampling", ["ordered", "stochastic"])
def test_sampled_subnets_differ(sampling: str) -> None:
    space = sampling_space(sampling, "default", (3, 3, 3))
    assert len(set(sample_distinct(space, 10, seed=0))) == 10
    assert len(set(sample_distinct(space, 10_000, seed=0))) == len(space)
