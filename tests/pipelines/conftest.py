"""Image folders made on the spot: smooth colour noise, so that interpolation differences stay small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasttrain.pipelines.check import check, list_images
from fasttrain.pipelines.folder import ImageFolder, scan
from fasttrain.pipelines.manifest import open_images
from fasttrain.pipelines.pack import pack
from tests.pipelines.loaders import OPENED


@pytest.fixture(autouse=True)
def _loaders_are_closed() -> Iterator[None]:
    yield
    OPENED.close()


def smooth_noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """An RGB image of colour blobs, with values over the whole range."""
    coarse = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_images(
    root: Path, count: int, sides: tuple[int, int], classes: int = 3, seed: int = 0
) -> ImageFolder:
    """`count` JPEGs with sides in [low, high), dealt over the classes."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        folder = root / f"class{index % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        width, height = rng.integers(*sides, size=2).tolist()
        smooth_noise(rng, width, height).save(folder / f"{index:03}.jpg", quality=92)
    return scan(root)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """47 images of 60 to 180 pixels in 3 classes."""
    return write_images(tmp_path_factory.mktemp("photos"), 47, (60, 180))


@pytest.fixture(scope="session")
def icons(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """23 images of 32x32 pixels in 3 classes."""
    return write_images(tmp_path_factory.mktemp("icons"), 23, (32, 33))


@pytest.fixture(scope="session")
def packed(photos: ImageFolder, tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """The photos in 3 tars."""
    target = tmp_path_factory.mktemp("packed") / "tars"
    pack(check(list_images(Path(photos.root))).manifest, target, shards=3, seed=1)
    return open_images(target)


@pytest.fixture(params=["files", "tars"])
def images(request: pytest.FixtureRequest) -> ImageFolder:
    """The photos as files and in tars."""
    return request.getfixturevalue({"files": "photos", "tars": "packed"}[request.param])
