from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from fasttrain.config import Data
from fasttrain.errors import DataError
from fasttrain.pipelines.folder import SUFFIXES, SYSTEM_FOLDERS, ImageFolder, reordered, scan, thinned
from fasttrain.pipelines.loader import eval_loader

from .conftest import smooth_noise

pytestmark = pytest.mark.pipelines


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_lists_images_sorted_by_class_and_name(tmp_path: Path) -> None:
    root = touch(
        tmp_path, "b/2.JPEG", "b/1.png", "a/x.webp", "a/notes.txt", "a/.hidden.jpg", ".git/1.jpg", "read.me"
    )
    folder = scan(root)
    assert folder.classes == ("a", "b")
    assert folder.files == ("a/x.webp", "b/1.png", "b/2.JPEG")
    assert folder.labels == (0, 1, 1)
    assert folder.path(2) == str(root / "b" / "2.JPEG")


def test_validation_must_have_the_training_classes(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"{name}/1.jpg" for name in "abc"))
    folder = scan(root, ["c", "a", "b"])
    assert (folder.classes, folder.files) == (("c", "a", "b"), ("c/1.jpg", "a/1.jpg", "b/1.jpg"))
    assert folder.labels == (0, 1, 2)
    expected = r"1 missing \(z\), 2 extra \(b, c\); allowed: the same 2 class folders"
    with pytest.raises(DataError, match=expected):
        scan(root, ["a", "z"])


def test_many_different_classes_are_abbreviated(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.jpg")
    with pytest.raises(DataError, match=r"99 missing \(c01, c02, c03, \.\.\.\)"):
        scan(root, ["a", *(f"c{index:02}" for index in range(1, 100))])


def test_a_folder_that_looks_like_an_image_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        scan(touch(tmp_path, "a/x.jpg/readme"))


@pytest.mark.parametrize(
    ("files", "root", "message"),
    [
        ([], "absent", "absent' does not exist; give a folder with one folder per class"),
        (["plain.jpg"], "plain.jpg", "plain.jpg' is not a folder"),
        ([".hidden/1.jpg", "1.jpg"], ".", "has no class folders"),
        (["a/1.jpg", "b/1.txt"], ".", r"class folder .*b holds no image; allowed: \.jpg"),
    ],
)
def test_unusable_folders_are_named(tmp_path: Path, files: list[str], root: str, message: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        scan(tmp_path / root)


def test_what_is_not_listed_is_told(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.jpg", "a/2.gif", "a/deep/3.jpg", "a/.hidden", "top.jpg", "manifest.jsonl")
    images = scan(root)
    assert images.files == ("a/1.jpg",)
    assert images.passed_over == ("a/2.gif", "a/deep", "top.jpg")
    assert images.omission.startswith("3 others ignored, the first: a/2.gif; images are CLASS/NAME with .jp")
    assert scan(touch(tmp_path / "clean", "a/1.jpg")).omission == ""


def test_systems_own_folders_are_no_classes(tmp_path: Path) -> None:
    """Nor are they read: only the root may read lost+found."""
    names = ["__MACOSX", "@eaDir", "lost+found", ".ipynb_checkpoints"]
    root = touch(tmp_path, "a/1.jpg", *(f"{name}/1.jpg" for name in names), "a/@eaDir/1.jpg")
    images = scan(root)
    assert (images.classes, images.files) == (("a",), ("a/1.jpg",))
    assert images.passed_over == ("@eaDir", "__MACOSX", "a/@eaDir", "lost+found")
    with pytest.raises(DataError, match="has no class folders"):
        scan(touch(tmp_path / "none", *(f"{name}/1.jpg" for name in SYSTEM_FOLDERS)))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([f"n01/images/{index}.JPEG" for index in range(6)], r"n01 holds no image \(6 in images/\); allowed"),
        (["n01/x/y/1.png", "n01/x/2.txt", "n01/x/y/.3.png"], r"n01 holds no image \(1 in x/y/\); allowed"),
        (["n01/x/1.txt"], r"n01 holds no image; allowed"),
    ],
)
def test_images_of_a_class_that_lie_deeper_are_found(tmp_path: Path, files: list[str], told: str) -> None:
    """As in Tiny ImageNet."""
    with pytest.raises(DataError, match=told):
        scan(touch(tmp_path, *files))


def test_every_suffix_is_of_images_that_training_decodes(tmp_path: Path) -> None:
    """Pillow writes what a suffix says; torchvision's are among them."""
    assert set(IMG_EXTENSIONS) <= set(SUFFIXES)
    (tmp_path / "a").mkdir()
    noise = smooth_noise(np.random.default_rng(0), 40, 40)
    for index, suffix in enumerate(SUFFIXES):
        image = noise.convert({".pgm": "L", ".pbm": "1"}.get(suffix, "RGB"))
        image.save(tmp_path / f"a/{index:02}{suffix}", lossless=True)
    folder = scan(tmp_path)
    assert [file[-len(suffix) :] for file, suffix in zip(folder.files, SUFFIXES, strict=True)] == [*SUFFIXES]
    data = Data(val_resize=40, val_crop=40, mean=(0, 0, 0), std=(1, 1, 1), threads=1)
    settings: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    with closing(eval_loader(data, folder, batch=len(SUFFIXES), **settings)) as loader:
        (batch,) = loader
    for index, suffix in enumerate(SUFFIXES):
        with Image.open(folder.path(index)) as image:
            expected = np.asarray(image.convert("RGB"), np.float32)
        difference = 255 * batch.images[index].permute(1, 2, 0).numpy() - expected
        assert np.abs(difference).max() < 3, suffix


def test_classes_are_put_into_another_order(images: ImageFolder) -> None:
    """Labels, files, and where they are in tars; the images stay the same."""
    order = ("class2", "class0", "class1")
    other = reordered(images, order)
    assert other.classes == order
    assert [order[label] for label in other.labels] == [file.partition("/")[0] for file in other.files]
    if images.members is None:
        assert other == scan(images.root, order)
    before = {file: images.read(index) for index, file in enumerate(images.files)}
    assert {file: other.read(index) for index, file in enumerate(other.files)} == before
    assert reordered(other, images.classes) == images
    assert reordered(images, images.classes) is images
    with pytest.raises(DataError, match=r"other classes .*: 1 missing \(x\), 1 extra \(class1\)"):
        reordered(images, ("class0", "class2", "x"))


@pytest.mark.parametrize("target", ["gone", "lost"])
def test_a_class_behind_a_broken_link_is_not_lost(tmp_path: Path, target: str) -> None:
    root = touch(tmp_path, "a/1.jpg")
    (root / "lost").symlink_to(target)  # to nothing, or to itself
    with pytest.raises(DataError, match=r"/lost is a link that leads nowhere"):
        scan(root)


def test_a_pipe_is_not_waited_on(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.jpg")
    os.mkfifo(root / "a" / "2.jpg")
    with pytest.raises(DataError, match=r"image .*/a/2\.jpg is a pipe or a device"):
        scan(root)


@pytest.mark.parametrize("root", ["s3://bucket/train", "gs:/bucket/train"])
def test_an_address_wants_a_manifest(root: str) -> None:
    with pytest.raises(DataError, match="is an address; allowed: s3:// by a manifest"):
        scan(root)


def test_thinned_images_are_spread_over_all(images: ImageFolder) -> None:
    few = thinned(images, 9)
    places = [images.files.index(file) for file in few.files]
    assert places == [i * 47 // 9 for i in range(9)]
    assert few.labels == tuple(images.labels[i] for i in places)
    assert set(few.labels) == {0, 1, 2}
    assert [few.read(i) for i in range(9)] == [images.read(i) for i in places]
    assert [few.path(i) for i in range(9)] == [images.path(i) for i in places]
    assert thinned(images, 47) is images
