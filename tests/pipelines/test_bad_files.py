from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fasttrain.config import Data
from fasttrain.errors import DataError
from fasttrain.pipelines import draws
from fasttrain.pipelines.decode_check import find_undecodable
from fasttrain.pipelines.examine import refuse_deadly
from fasttrain.pipelines.folder import ImageFolder
from fasttrain.pipelines.loader import Batch
from tests.pipelines.loaders import eval_loader, train_loader

from .conftest import smooth_noise

# DALI keeps a file open that it could not map into memory
pytestmark = [pytest.mark.pipelines, pytest.mark.leaves(r"/copies/class")]

DATA = Data(crop=32, val_resize=32, val_crop=32, threads=2)
CPU = torch.device("cpu")

DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "cannot be read: no such file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:600]), "cannot be decoded"),
    "text": (lambda path: path.write_text("no picture\n" * 50), "cannot be decoded"),
}


@pytest.fixture
def copies(photos: ImageFolder, tmp_path: Path) -> ImageFolder:
    shutil.copytree(photos.root, tmp_path / "copies")
    return dataclasses.replace(photos, root=str(tmp_path / "copies"))


def training(folder: ImageFolder) -> Iterator[Batch]:
    return train_loader(DATA, folder, batch=8, seed=0, device=CPU, dtype=torch.float32).epoch(0)


def evaluation(folder: ImageFolder) -> Iterator[Batch]:
    return iter(eval_loader(DATA, folder, batch=8, device=CPU, dtype=torch.float32))


@pytest.mark.parametrize("batches", [training, evaluation])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_file_is_named_at_once(
    copies: ImageFolder, damage: str, batches: Callable[[ImageFolder], Iterator[Batch]]
) -> None:
    harm, reason = DAMAGES[damage]
    # DALI decodes what the crop needs: damage several images, so that a lower part is needed of one
    bad = [Path(copies.path(index)) for index in (5, 20, 33)]
    for path in bad:
        harm(path)
    start = time.monotonic()
    with pytest.raises(DataError, match=reason) as caught:
        list(batches(copies))
    assert time.monotonic() - start < 120  # it waits for nothing
    assert any(f"image {path} " in str(caught.value) for path in bad)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_good_files_are_not_blamed(photos: ImageFolder) -> None:
    assert find_undecodable(photos, range(47)) is None


def test_the_first_of_many_is_found(copies: ImageFolder) -> None:
    for index in (40, 44):
        Path(copies.path(index)).write_text("no picture")
    assert find_undecodable(copies, range(47)) == (
        copies.path(40),
        "cannot be decoded: it is damaged or no image",
    )


def turned_print(path: Path, size: tuple[int, int]) -> None:
    """A CMYK TIFF that its tag turns: by windows it is refused, whole it is written over other memory."""
    smooth_noise(np.random.default_rng(0), *size).convert("CMYK").save(path, "TIFF", tiffinfo={274: 6})


def test_an_image_that_fails_by_windows_alone_is_named(copies: ImageFolder) -> None:
    turned_print(Path(copies.path(9)), (160, 90))
    with pytest.raises(DataError, match=f"^image {copies.path(9)} cannot be decoded"):
        list(training(copies))


def test_an_image_that_kills_the_decoder_is_named(copies: ImageFolder) -> None:
    turned_print(Path(copies.path(9)), (4000, 20))
    found = find_undecodable(copies, range(8, 12))
    assert found == (copies.path(9), "cannot be decoded: the process that tried it was killed by SIGSEGV")


def test_an_image_that_would_kill_the_decoder_is_refused_at_the_start(copies: ImageFolder) -> None:
    refuse_deadly(copies)
    name = "class0/turned.TIFF"
    turned_print(Path(copies.root) / name, (160, 90))
    more = dataclasses.replace(copies, files=(*copies.files, name), labels=(*copies.labels, 0))
    with pytest.raises(DataError, match=rf"^image \S+/{name} is a TIFF that .* \(6\) turns"):
        refuse_deadly(more)
    (Path(copies.root) / name).write_text("no image")  # is named when it fails
    refuse_deadly(more)


def test_a_bad_member_of_a_tar_is_named(packed: ImageFolder, tmp_path: Path) -> None:
    shutil.copytree(packed.root, tmp_path / "tars")
    copy = dataclasses.replace(packed, root=str(tmp_path / "tars"))
    offset, size = copy.span(30)
    with open(copy.container(30), "r+b") as file:
        file.seek(offset)
        file.write(b"x" * size)
    crops = draws.augmentation(DATA, 0, 0, 0, 47)["crop"]
    for numbers in (None, crops):
        found = find_undecodable(copy, range(47), numbers)
        assert found == (copy.path(30), "cannot be decoded: it is damaged or no image")


def test_a_loader_goes_on_after_the_file_was_mended(copies: ImageFolder, photos: ImageFolder) -> None:
    loader = eval_loader(DATA, copies, batch=8, device=CPU, dtype=torch.float32)
    Path(copies.path(9)).write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        list(loader)
    shutil.copy(photos.path(9), copies.path(9))
    assert sum(len(batch.targets) for batch in loader) == 47
