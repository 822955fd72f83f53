"""Manifests: what is written is read back; what was changed, or is no manifest, is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from fasttrain.errors import DataError
from fasttrain.pipelines.check import check, list_images
from fasttrain.pipelines.folder import ImageFolder, scan
from fasttrain.pipelines.manifest import Manifest, check_presence, open_images, read_manifest

pytestmark = pytest.mark.pipelines


@pytest.fixture(scope="module")
def manifest(photos: ImageFolder) -> Manifest:
    return check(list_images(Path(photos.root))).manifest


@pytest.fixture
def written(manifest: Manifest, tmp_path: Path) -> Path:
    manifest.write(tmp_path / "m.jsonl")
    return tmp_path / "m.jsonl"


def test_a_manifest_is_read_as_written(manifest: Manifest, written: Path, photos: ImageFolder) -> None:
    assert read_manifest(written) == manifest
    images = open_images(written)
    assert (images.files, images.labels, images.classes) == (photos.files, photos.labels, photos.classes)
    assert images.path(3) == photos.path(3)
    check_presence(images)
    assert [path.name for path in written.parent.iterdir()] == ["m.jsonl"]


def test_a_manifest_moves_with_its_folder(photos: ImageFolder, tmp_path: Path) -> None:
    shutil.copytree(photos.root, tmp_path / "here")
    check(list_images(tmp_path / "here")).manifest.write(tmp_path / "here" / "manifest.jsonl")
    (tmp_path / "here").rename(tmp_path / "there")
    images = open_images(tmp_path / "there")
    assert images.contents
    assert images.path(0) == str(tmp_path / "there" / photos.files[0])
    check_presence(images)


def test_names_in_any_encoding_are_kept(photos: ImageFolder, tmp_path: Path) -> None:
    names = ("b" * 200, "line\nbreak", "\u732b", os.fsdecode(b"not-utf8-\xff"))
    (tmp_path / "c").mkdir()
    for name in names:
        shutil.copy(photos.path(0), tmp_path / "c" / f"{name}.jpg")
    check(list_images(tmp_path)).manifest.write(tmp_path / "manifest.jsonl")
    assert (
        open_images(tmp_path).files
        == scan(tmp_path).files
        == tuple(sorted(f"c/{name}.jpg" for name in names))
    )


def test_the_fingerprint_tells_images_apart(photos: ImageFolder, manifest: Manifest) -> None:
    known = manifest.images()
    records = list(manifest.records)
    records[4] = dataclasses.replace(records[4], sha256="0" * 64)
    different = [
        photos,
        known,
        dataclasses.replace(photos, labels=photos.labels[::-1]),
        dataclasses.replace(photos, files=photos.files[::-1]),
        dataclasses.replace(photos, classes=("a", "b", "c")),
        dataclasses.replace(photos, classes=("ab", "c", "class2")),
        dataclasses.replace(manifest, records=tuple(records)).images(),
    ]
    assert len({images.fingerprint for images in different}) == len(different)
    elsewhere = dataclasses.replace(photos, root="/elsewhere")
    assert elsewhere.fingerprint == photos.fingerprint == scan(photos.root).fingerprint


def test_the_fingerprint_is_the_same_in_tars(manifest: Manifest, packed: ImageFolder) -> None:
    assert packed.fingerprint == manifest.images().fingerprint


def edited(written: Path, line: int, **changes: object) -> Path:
    lines = written.read_text().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | changes)
    written.write_text("\n".join(lines) + "\n")
    return written


def sealed(written: Path) -> Path:
    """With the SHA-256 that another tool would give it."""
    first, *lines = written.read_text().splitlines(keepends=True)
    header = {name: value for name, value in json.loads(first).items() if name != "sha256"}
    contents = (json.dumps(header) + "\n", *lines)
    header["sha256"] = hashlib.sha256("".join(contents).encode()).hexdigest()
    written.write_text("".join((json.dumps(header) + "\n", *lines)))
    return written


@pytest.mark.parametrize(
    ("line", "changes"), [(0, {"classes": ["a", "b", "c"]}), (0, {"root": "/"}), (7, {"label": 2})]
)
def test_a_changed_manifest_is_refused(written: Path, line: int, changes: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"m\.jsonl was changed or cut off after it was written"):
        open_images(edited(written, line, **changes))


def test_a_manifest_cut_off_is_refused(written: Path) -> None:
    written.write_text("".join(written.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="was changed or cut off"):
        open_images(written)


def test_other_versions_and_other_files_are_refused(written: Path, photos: ImageFolder) -> None:
    with pytest.raises(DataError, match=r"is of version 2; allowed: 1"):
        open_images(edited(written, 0, fasttrain_manifest=2))
    for content in (b"", b"[]", b"{}", b"\xff\xfe", b"5\n"):
        written.write_bytes(content)
        with pytest.raises(DataError, match="is no manifest"):
            open_images(written)
    with pytest.raises(DataError, match="is no manifest"):
        open_images(photos.path(0))


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.jpg", "a/../../x.jpg"])
def test_paths_out_of_the_root_are_refused(manifest: Manifest, tmp_path: Path, path: str) -> None:
    records = (dataclasses.replace(manifest.records[0], path=path), *manifest.records[1:])
    dataclasses.replace(manifest, records=records).write(tmp_path / "m.jsonl")
    with pytest.raises(DataError, match=r"allowed: paths below its root"):
        open_images(tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 3}, "line 9: label is 3; allowed: 0 to 2"),
        ({"label": "1"}, "line 9: label is '1'; allowed: a value of type int"),
        ({"bytes": 0}, "line 9: bytes is 0"),
        ({"shard": 0}, "line 9: shard is 0; allowed: an index into the 0 shards"),
        ({"path": "a\0b"}, "line 9: path is 'a"),
        ({"path": "class0/000.jpg"}, "names 'class0/000.jpg' 2 times; allowed: once"),
        ({"more": 1}, "line 9, is no image's"),
    ],
)
def test_lines_that_cannot_be_right_are_named(
    manifest: Manifest, written: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=rf"m\.jsonl,? {message}"):
        open_images(sealed(edited(written, 8, **changes)))


@pytest.mark.parametrize(
    "changes",
    [{"classes": "abc"}, {"classes": ["a", "a", "b"]}, {"root": None}, {"shards": 0}, {"left_out": [1]}],
)
def test_a_header_that_cannot_be_right_is_refused(written: Path, changes: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"wrong header|names 'a' 2 times"):
        open_images(sealed(edited(written, 0, **changes)))


def test_missing_files_and_other_sizes_are_named(photos: ImageFolder, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(photos.root, root)
    manifest = check(list_images(root)).manifest
    manifest.write(tmp_path / "m.jsonl")
    images = open_images(tmp_path / "m.jsonl")
    Path(images.path(30)).unlink()
    with pytest.raises(
        DataError, match=rf"1 of 47 files .*first: {images.path(30)} cannot be read \(no such"
    ):
        check_presence(images)
    Path(images.path(9)).write_bytes(b"12345")
    with pytest.raises(DataError, match=rf"2 of 47 files .*first: {images.path(9)} has 5 bytes, not \d+;"):
        check_presence(images)


@pytest.mark.parametrize("part", ["folder", "file"])
def test_a_missing_file_whose_name_another_looks_like_is_told(
    photos: ImageFolder, tmp_path: Path, part: str
) -> None:
    """As files from a Mac, whose letters are decomposed there."""
    name, other = "caf\u00e9", "cafe\u0301"
    path = tmp_path / (f"{name}/1.jpg" if part == "folder" else f"a/{name}.jpg")
    path.parent.mkdir()
    shutil.copy(photos.path(0), path)
    check(list_images(tmp_path)).manifest.write(tmp_path / "m.jsonl")
    named = path.parent if part == "folder" else path
    named.rename(named.with_name(named.name.replace(name, other)))
    with pytest.raises(DataError) as error:
        check_presence(open_images(tmp_path / "m.jsonl"))
    end = "" if part == "folder" else ".jpg"
    assert f"; 'cafe\\u0301{end}' is there, which looks like 'caf\\xe9{end}'; mend" in str(error.value)


def test_classes_must_be_the_training_images(written: Path) -> None:
    plain = open_images(written, ["class0", "class1", "class2"])
    with pytest.raises(DataError, match=r"manifest .*m\.jsonl' has other classes .*1 missing \(x\), 1 extra"):
        open_images(written, ["class0", "class1", "x"])
    other = open_images(written, ["class1", "class0", "class2"])
    assert other.classes == ("class1", "class0", "class2")
    assert dict(zip(other.files, other.labels, strict=True)) == {
        file: (1, 0, 2)[label] for file, label in zip(plain.files, plain.labels, strict=True)
    }
    assert list(other.labels) == sorted(other.labels)
    assert other.sizes is not None
    assert [Path(other.path(i)).stat().st_size for i in (0, 20, 46)] == other.sizes[[0, 20, 46]].tolist()
    assert other.fingerprint != plain.fingerprint


def test_a_manifest_of_nothing_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    dataclasses.replace(manifest, records=()).write(tmp_path / "m.jsonl")
    with pytest.raises(DataError, match="holds no image"):
        open_images(tmp_path / "m.jsonl")


def test_a_folder_that_cannot_be_written_is_named(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write the manifest"):
        manifest.write(tmp_path / "none" / "m.jsonl")
