from __future__ import annotations

import os
from pathlib import Path

import pytest

from fasttrain.errors import DataError
from fasttrain.pipelines.folder import ImageFolder, scan, thinned

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
