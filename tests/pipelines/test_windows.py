from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import CenterCrop, RandomResizedCrop

from fasttrain.config import Data
from fasttrain.pipelines import draws, windows

pytestmark = pytest.mark.pipelines


def shapes(*sizes: tuple[int, int]) -> windows.Arrays:
    return [np.array([height, width, 3], np.int64) for height, width in sizes]


def random_windows(height: int, width: int, count: int, min_area: float) -> np.ndarray:
    """[count, 4]: top, left, height, width."""
    numbers = draws.augmentation(Data(min_area=min_area), 0, 0, 0, count)["crop"]
    corner, size = windows.random_resized(shapes((height, width)) * count, list(numbers))
    return np.concatenate([corner, size], axis=1)


@pytest.mark.parametrize("image", [(375, 500), (500, 333), (90, 400), (1, 1), (7, 3000)])
def test_windows_are_inside_the_image(image: tuple[int, int]) -> None:
    found = random_windows(*image, count=2000, min_area=0.08)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] >= 1).all()
    assert (found[:, :2] + found[:, 2:] <= image).all()


@pytest.mark.parametrize(("image", "min_area"), [((375, 500), 0.08), ((500, 333), 0.35), ((120, 400), 0.5)])
def test_statistics_are_torchvisions(image: tuple[int, int], min_area: float) -> None:
    """Mean and spread of corner, size and area agree within four standard errors."""
    count = 4000
    ours = random_windows(*image, count=count, min_area=min_area).astype(np.float64)
    torch.manual_seed(0)
    picture = torch.empty(3, *image)
    theirs = np.array(
        [RandomResizedCrop.get_params(picture, [min_area, 1.0], [3 / 4, 4 / 3]) for _ in range(count)],
        np.float64,
    )
    ours, theirs = (np.column_stack([w, w[:, 2] * w[:, 3], w[:, 3] / w[:, 2]]) for w in (ours, theirs))
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / count)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) <= 4 * error + 1e-9).all()
    assert ours.std(axis=0) == pytest.approx(theirs.std(axis=0), rel=0.06, abs=1e-9)


@pytest.mark.parametrize("image", [(20, 300), (300, 20), (100, 120)])
def test_without_a_fitting_try_the_centre_is_cropped(image: tuple[int, int]) -> None:
    numbers = np.full(2 * draws.TRIES + 2, 10.0, np.float32)
    corner, size = windows.random_resized(shapes(image), [numbers])
    torch.manual_seed(0)
    # an area of 100 times the image's never fits
    theirs = RandomResizedCrop.get_params(torch.empty(3, *image), [100.0, 100.0], [3 / 4, 4 / 3])
    assert (*corner[0].tolist(), *size[0].tolist()) == tuple(theirs)


def test_padded_windows_reach_every_position() -> None:
    positions = np.random.default_rng(0).random((4000, 2), dtype=np.float32)
    (corners,) = windows.padded(4, 32, shapes((32, 32)) * 4000, list(positions))
    counts = np.bincount(np.stack(corners)[:, 0] + 4)
    # 4000 / 9 = 444 +- 20
    assert len(counts) == 9
    assert (np.abs(counts - 444) < 100).all()
    (last,) = windows.padded(
        4, 32, shapes((32, 40)), [np.array([0, np.nextafter(np.float32(1), np.float32(0))])]
    )
    assert last[0].tolist() == [-4, 12]


@pytest.mark.parametrize("image", [(375, 500), (500, 375), (333, 500), (481, 640), (32, 32), (1200, 301)])
def test_centre_crops_are_rounded_like_torchvisions(image: tuple[int, int]) -> None:
    size, position = windows.centre(256, 223, shapes(image))
    height, width = size[0].astype(int).tolist()
    resized = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    expected = CenterCrop(223)(resized)[:, 0, 0].tolist()
    assert np.rint(position[0] * (np.array([height, width]) - 223)).tolist() == expected
