from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fasttrain.config import Data
from fasttrain.errors import ConfigError
from fasttrain.pipelines import draws
from fasttrain.randomness import draw_sizes

pytestmark = pytest.mark.pipelines


def test_the_order_is_a_permutation_of_its_own_per_epoch_and_seed() -> None:
    orders = [draws.order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert len({order.tobytes() for order in orders}) == 4
    assert np.array_equal(draws.order(1, 1, 1000), orders[-1])
    assert np.array_equal(draws.order(1, 1, 1000, shuffle=False), np.arange(1000))


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_repeated_images_share_a_step_and_an_epochs_length(repeats: int, world: int) -> None:
    images, batch = 1009, 24 * world
    orders = [draws.order(5, epoch, images, repeats=repeats, batch=batch) for epoch in range(2)]
    permutation = draws.order(5, 0, images)
    distinct = -(-images // repeats)
    counts = Counter(orders[0].tolist())
    assert len(orders[0]) == images
    assert set(counts) == set(permutation[:distinct].tolist())
    assert sorted(counts.values())[1:] == [repeats] * (distinct - 1)
    assert set(orders[1].tolist()) != set(counts)
    for start in range(0, images - batch + 1, batch):
        step = orders[0][start : start + batch]
        assert set(Counter(step.tolist()).values()) == {repeats}
        # one copy in each part of the step: processes share them, and neighbours differ
        for part in step.reshape(repeats, -1):
            assert len(set(part.tolist())) == len(part)
        if world % repeats == 0:
            for own in step.reshape(world, -1):
                assert len(set(own.tolist())) == len(own)


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_copies_that_a_step_cannot_hold_come_in_the_next(batch: int) -> None:
    order = draws.order(5, 0, 100, repeats=3, batch=batch)
    assert sorted(Counter(order.tolist()).values()) == [1] + [3] * 33
    first = {image: place for place, image in reversed(list(enumerate(order.tolist())))}
    last = {image: place for place, image in enumerate(order.tolist())}
    assert max(last[image] // batch - first[image] // batch for image in first) <= max(1, 2 // batch)
    assert np.array_equal(draws.order(5, 0, 100, repeats=1, batch=batch), draws.order(5, 0, 100))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("images", [24, 25, 29, 31, 47])
def test_ranks_share_each_global_batch(images: int, drop_last: bool, world: int) -> None:
    split = draws.Split(images=images, batch=24 // world, world=world, drop_last=drop_last)
    rest = 0 if drop_last else images % 24 // world * world
    assert split.steps == images // 24 + (rest > 0)
    for step in range(split.steps):
        size = 24 if step < images // 24 else rest
        rows = [split.rows(step, rank) for rank in range(world)]
        assert [start for start, _ in rows] == [rank * size // world for rank in range(world)]
        assert [stop for _, stop in rows] == [(rank + 1) * size // world for rank in range(world)]


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("drop_last", [True, False])
def test_no_image_is_repeated_where_shares_are_whole_batches(drop_last: bool, world: int) -> None:
    """Where DALI's own reader gives a rank a batch of one image: images // world a multiple of the batch, and
    images none of the world.
    """
    batch, images = 3, 6 * world + 1
    split = draws.Split(images=images, batch=batch, world=world, drop_last=drop_last)
    order = draws.order(0, 1, images)
    rows = [(step, *split.rows(step, rank)) for step in range(split.steps) for rank in range(world)]
    taken = [order[step * batch * world :][start:stop] for step, start, stop in rows]
    assert {len(images) for images in taken} == {batch} | ({1} if world == 1 and not drop_last else set())
    assert len(np.unique(np.concatenate(taken))) == sum(map(len, taken)) == images - (drop_last or world > 1)


@pytest.mark.parametrize(("images", "drop_last"), [(7, True), (1, False)])
def test_a_batch_larger_than_the_data_is_refused(images: int, drop_last: bool) -> None:
    with pytest.raises(ConfigError, match=f"run.batch is 8, larger than the data's {images} images"):
        draws.Split(images=images, batch=4, world=2, drop_last=drop_last)


def test_a_kept_partial_batch_may_be_the_only_one() -> None:
    split = draws.Split(images=7, batch=4, world=2, drop_last=False)
    assert (split.steps, split.rows(0, 0), split.rows(0, 1)) == (1, (0, 3), (3, 6))


def test_sizes_cover_the_choices_evenly_and_differ_between_epochs() -> None:
    choices = (96, 128, 160, 192)
    epochs = [
        [draw_sizes(choices, 2, seed=3, epoch=epoch, step=step) for step in range(500)] for epoch in (0, 1)
    ]
    assert epochs[0] != epochs[1]
    counts = Counter(size for step in epochs[0] for size in step)
    # 1000 draws of 4: 250 +- 13.7 each
    assert set(counts) == set(choices)
    assert all(abs(count - 250) < 60 for count in counts.values())
    # with replacement: a quarter of the pairs are equal
    assert 80 < sum(first == second for first, second in epochs[0]) < 170


def test_augmentation_is_drawn_only_where_asked_for() -> None:
    everything = draws.augmentation(Data(), 0, 1, 2, 5)
    jitter = {"brightness", "contrast", "saturation", "order0", "order1", "order2"}
    assert set(everything) == {"crop", "flip", "lighting"} | jitter
    bare = draws.augmentation(Data(flip=0, jitter=0, lighting=0), 0, 1, 2, 5)
    assert set(bare) == {"crop"}
    # switching one augmentation off leaves the others as they were
    assert np.array_equal(bare["crop"], everything["crop"])


def test_augmentation_differs_between_steps_and_repeats() -> None:
    first, other, again = (draws.augmentation(Data(), 7, 1, step, 64)["crop"] for step in (0, 1, 0))
    assert np.array_equal(first, again)
    assert not np.isin(first, other).any()


def test_flips_and_factors_have_their_distributions() -> None:
    numbers = draws.augmentation(Data(flip=0.3, jitter=0.4), 0, 0, 0, 20_000)
    assert numbers["flip"].mean() == pytest.approx(0.3, abs=0.015)
    for name in ("brightness", "contrast", "saturation"):
        assert numbers[name].min() == pytest.approx(0.6, abs=0.001)
        assert numbers[name].max() == pytest.approx(1.4, abs=0.001)
        assert numbers[name].mean() == pytest.approx(1.0, abs=0.01)
    orders = Counter(zip(*(numbers[f"order{place}"].tolist() for place in range(3)), strict=True))
    # 20000 / 6 = 3333 +- 53
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2)}
    assert len(orders) == 6
    assert all(abs(count - 3333) < 250 for count in orders.values())
    correlation = np.corrcoef([numbers["brightness"], numbers["contrast"], numbers["saturation"]])
    assert np.abs(correlation - np.eye(3)).max() < 0.04


def test_lighting_has_the_covariance_of_its_components() -> None:
    shift = draws.augmentation(Data(lighting=0.1), 0, 0, 0, 50_000)["lighting"] / 255
    basis = draws.PCA_EIGENVECTORS * (0.1 * draws.PCA_EIGENVALUES)
    assert np.cov(shift.T) == pytest.approx(basis @ basis.T, rel=0.05, abs=1e-8)


def test_published_lighting_lowers_by_at_most_one_level() -> None:
    shift = draws.augmentation(Data(published_lighting=True), 0, 0, 0, 2000)["lighting"]
    assert set(np.unique(shift).tolist()) == {-1.0, 0.0}
    # the first component dominates: three channels mostly go the same way
    assert 0.4 < shift.mean() + 1 < 0.6
