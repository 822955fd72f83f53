"""Random erasing: boxes as torchvision draws them, the same in the full and the downscaled batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import RandomErasing

from fasttrain.config import Data
from fasttrain.errors import ConfigError
from fasttrain.pipelines import draws, erasing
from fasttrain.pipelines.folder import ImageFolder
from fasttrain.pipelines.loader import Batch
from tests.pipelines.loaders import train_loader

pytestmark = pytest.mark.pipelines

PLAIN = Data(crop=64, val_resize=64, val_crop=64, flip=0, jitter=0, lighting=0, threads=1)
SEED, BATCH = 4, 24


def first_batch(data: Data, folder: ImageFolder, **options: Any) -> Batch:
    options = {"batch": BATCH, "sizes": (32,), "sizes_per_step": 1, **options}
    cpu = torch.device("cpu")
    return next(train_loader(data, folder, seed=SEED, device=cpu, dtype=torch.float32, **options).epoch(0))


def boxes(data: Data) -> torch.Tensor:
    """Where the images of the first step are erased, bool [B, 1, 64, 64]."""
    numbers = draws.augmentation(data, SEED, 0, 0, BATCH)
    where = torch.zeros(BATCH, 1, data.crop, data.crop, dtype=torch.bool)
    columns = (numbers[name].tolist() for name in ("erased", "erase_corner", "erase_extent"))
    for mask, erased, (top, left), (height, width) in zip(where, *columns, strict=True):
        mask[:, top : top + height, left : left + width] = bool(erased)
    return where


@pytest.mark.parametrize("colour", ["exact", "folded"])
def test_boxes_become_zero_and_nothing_else_changes(photos: ImageFolder, colour: Any) -> None:
    """After normalization, as timm's `const`; to the rounding of a level where pixels are bytes."""
    data = dataclasses.replace(PLAIN, jitter=0.4, lighting=0.1, colour=colour)
    own = dataclasses.replace(data, erase=0.5)
    plain, erased, where = first_batch(data, photos), first_batch(own, photos), boxes(own)
    assert 6 < where.flatten(1).any(1).sum() < 18
    assert torch.equal(
        erased.images[~where.expand_as(erased.images)], plain.images[~where.expand_as(plain.images)]
    )
    bound = 0.51 / 255 / min(data.std) if colour == "exact" else 1e-5
    assert erased.images[where.expand_as(erased.images)].abs().max() < bound
    # the small batch is made of the erased one: one box in both
    expected = F.interpolate(erased.images, (32, 32), mode="bilinear", antialias=True)
    assert (erased.small[0] - expected).abs().mean() < 0.5 / 255 / min(data.std)


def test_erased_boxes_are_mirrored_with_their_images(photos: ImageFolder) -> None:
    data = dataclasses.replace(PLAIN, erase=1.0)
    straight, mirrored = (first_batch(dataclasses.replace(data, flip=flip), photos) for flip in (0.0, 1.0))
    assert torch.equal(mirrored.images, straight.images.flip(-1))


def test_noise_is_normal_and_of_each_boxs_own(photos: ImageFolder) -> None:
    data = dataclasses.replace(PLAIN, erase=1.0, erase_fill="noise")
    plain, noisy, where = first_batch(PLAIN, photos), first_batch(data, photos), boxes(data)
    spread = where.expand_as(noisy.images)
    assert torch.equal(noisy.images[~spread], plain.images[~spread])
    values = noisy.images[spread]
    assert abs(values.mean()) < 0.05
    assert 0.9 < values.std() < 1.02  # levels end at 0 and 255
    assert abs(values.sort().values[len(values) // 4] + 0.674) < 0.05
    both = where[0] & where[1]
    if both.any():
        one, other = (noisy.images[index][both.expand(3, -1, -1)] for index in (0, 1))
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.3


def test_boxes_have_torchvisions_distribution() -> None:
    """Means of corner, extent and area within four standard errors."""
    count, side = 4000, 96
    data = dataclasses.replace(PLAIN, crop=side, erase=1.0)
    numbers = erasing.draw(data, 0, 0, 0, count)
    taken = numbers["erased"] == 1
    ours = np.concatenate([numbers["erase_corner"], numbers["erase_extent"]], axis=1)[taken].astype(
        np.float64
    )
    torch.manual_seed(0)
    image = torch.empty(3, side, side)
    params = [RandomErasing.get_params(image, erasing.AREA, erasing.RATIO, [0.0])[:4] for _ in range(count)]
    theirs = np.array([each for each in params if each[2:] != (side, side)], np.float64)
    ours, theirs = (np.column_stack([b, b[:, 2] * b[:, 3], b[:, 2] / b[:, 3]]) for b in (ours, theirs))
    error = np.sqrt(ours.var(axis=0) / len(ours) + theirs.var(axis=0) / len(theirs))
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) <= 4 * error).all()
    assert ours.std(axis=0) == pytest.approx(theirs.std(axis=0), rel=0.06)
    assert (ours[:, :2] + ours[:, 2:4]).max() == side


def test_erasing_has_its_probability_and_leaves_the_other_draws() -> None:
    data = dataclasses.replace(PLAIN, erase=0.25)
    assert erasing.draw(data, 1, 0, 0, 20_000)["erased"].mean() == pytest.approx(0.25, abs=0.015)
    with_, without = (draws.augmentation(each, 1, 0, 0, 50) for each in (data, PLAIN))
    assert np.array_equal(with_["crop"], without["crop"])


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_two_processes_erase_as_one(photos: ImageFolder, fill: Any) -> None:
    data = dataclasses.replace(PLAIN, erase=0.5, erase_fill=fill)
    parts = [first_batch(data, photos, batch=BATCH // 2, rank=rank, world=2) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.images for part in parts]), first_batch(data, photos).images)


def test_wrong_probabilities_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.erase is 1\.5; allowed: 0 to 1"):
        Data(erase=1.5)
