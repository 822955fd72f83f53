"""Images kept on the device: the same batches as DALI's, by the same draws."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fasttrain.config import Data
from fasttrain.errors import ConfigError, DataError
from fasttrain.pipelines.folder import ImageFolder, scan
from fasttrain.pipelines.resident import ResidentLoader, decode, ordered_batches
from tests.pipelines.conftest import write_images

DATA = Data(augmentation="small", crop=32, val_resize=32, val_crop=32, jitter=0, lighting=0, threads=2)


def resident(folder: ImageFolder, data: Data = DATA, **options: object) -> ResidentLoader:
    options = {"batch": 8, "seed": 5, **options}
    return ResidentLoader(decode(folder, data.crop), data, **options)  # type: ignore[arg-type]


@pytest.mark.pipelines
@pytest.mark.parametrize("antialias", [True, False])
def test_batches_are_dalis(icons: ImageFolder, antialias: bool) -> None:
    """Full size to rounding; downscaled within the rounding to bytes: once by DALI, by torch twice."""
    from tests.pipelines.loaders import train_loader

    data = dataclasses.replace(DATA, antialias=antialias, drop_last=False)
    options = {"batch": 8, "seed": 5, "sizes": (16, 24), "sizes_per_step": 2}
    dali = train_loader(data, icons, device=torch.device("cpu"), dtype=torch.float32, **options)
    ours = resident(icons, data, **options)
    assert ours.steps_per_epoch == dali.steps_per_epoch == 3
    for epoch in (0, 1):
        for mine, other in zip(ours.epoch(epoch), dali.epoch(epoch), strict=True):
            assert torch.equal(mine.targets, other.targets)
            for left, right in zip((mine.images, *mine.small), (other.images, *other.small), strict=True):
                assert left.shape == right.shape
                assert left.is_contiguous(memory_format=torch.channels_last)
                levels = 255 * 0.229 * (left - right).abs()
                if left is mine.images:
                    assert levels.max() < 1e-3
                else:
                    assert levels.max() < (1.1 if antialias else 0.6)
    dali.close()


def test_a_resumed_epoch_is_the_rest_of_it(icons: ImageFolder) -> None:
    loader = resident(icons, sizes=(16, 24, 32), sizes_per_step=1, batch=4)
    whole = list(loader.epoch(3))
    rest = list(loader.epoch(3, 2))
    assert len(whole) == 5
    assert {batch.small[0].shape[-1] for batch in whole} > {16}
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.small[0], other.small[0])


def test_an_epoch_takes_each_image_once_and_drops_the_rest(icons: ImageFolder) -> None:
    numbered = dataclasses.replace(icons, labels=tuple(range(23)))
    taken = [batch.targets.tolist() for batch in resident(numbered).epoch(0)]
    assert [len(batch) for batch in taken] == [8, 8]
    assert len({each for batch in taken for each in batch}) == 16


def test_evaluation_takes_all_in_order(icons: ImageFolder) -> None:
    images = decode(icons, 32)
    batches = list(ordered_batches(images, DATA, 10))
    assert [len(targets) for _, targets in batches] == [10, 10, 3]
    assert torch.equal(torch.cat([targets for _, targets in batches]), images.labels)
    first = (images.pixels[0].double() / 255 - torch.tensor(DATA.mean)) / torch.tensor(DATA.std)
    torch.testing.assert_close(batches[0][0][0].permute(1, 2, 0).double(), first, rtol=1e-5, atol=1e-5)


def test_other_images_are_resized_and_cropped_in_the_middle(tmp_path: Path) -> None:
    """A grey ramp of 64x32 keeps its middle; half the side halves it."""
    (tmp_path / "only").mkdir()
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 32, axis=0)
    Image.fromarray(ramp).save(tmp_path / "only" / "ramp.png")
    pixels = decode(scan(tmp_path), 32).pixels
    assert pixels.shape == (1, 32, 32, 3)
    assert pixels[0, 7, :, 1].tolist() == list(range(64, 192, 4))
    half = decode(scan(tmp_path), 16).pixels[0, 3, :, 0].float()
    torch.testing.assert_close(half, torch.arange(66.0, 194, 8), rtol=0, atol=2.0)


def test_first_images_are_spread_over_the_classes(tmp_path: Path) -> None:
    images = decode(write_images(tmp_path, 30, (16, 17)), 16)
    assert images.first(6).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(images.first(50)) == 30


def test_bad_images_and_batches_are_named(icons: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.jpg"):
        decode(scan(tmp_path), 32)
    with pytest.raises(ConfigError, match="batch"):
        resident(icons, batch=24)


@pytest.mark.parametrize(("field", "value"), [("policy", "autoaugment"), ("erase", 0.5)])
def test_other_augmentations_are_refused(icons: ImageFolder, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{field} is {value!r}; allowed for resident images"):
        resident(icons, dataclasses.replace(DATA, **{field: value}), batch=4, seed=0)
