"""`data pack`: tars that hold the files' bytes, that DALI reads, and that `data check` finds equal."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def
from PIL import Image

from fasttrain.errors import ConfigError, DataError
from fasttrain.pipelines.check import check, list_images
from fasttrain.pipelines.folder import ImageFolder
from fasttrain.pipelines.manifest import Manifest, open_images, read_manifest
from fasttrain.pipelines.pack import Reencoding, pack

from .conftest import smooth_noise
from .odd_images import odd_images
from .test_odd_images import decoded

pytestmark = pytest.mark.pipelines


@pytest.fixture(scope="module")
def manifest(photos: ImageFolder) -> Manifest:
    return check(list_images(Path(photos.root))).manifest


def without_places(manifest: Manifest) -> list[object]:
    return [dataclasses.replace(each, shard=-1, offset=0) for each in manifest.records]


def test_the_check_of_tars_agrees_file_by_file(manifest: Manifest, packed: ImageFolder) -> None:
    done = check(list_images(Path(packed.root))).manifest
    assert done.left_out == ()
    assert without_places(done) == list(manifest.records)
    assert done == read_manifest(Path(packed.root) / "manifest.jsonl")
    shards = [each.shard for each in done.records]
    assert [shards.count(shard) for shard in range(3)] == [16, 16, 15]


def test_tars_hold_each_file_and_label(photos: ImageFolder, packed: ImageFolder) -> None:
    seen = {}
    for shard in sorted(Path(packed.root).glob("*.tar")):
        with tarfile.open(shard) as tar:
            for image, label in zip(*[iter(tar)] * 2, strict=True):
                assert image.name.removesuffix(".jpg") == label.name.removesuffix(".cls")
                image_file, label_file = tar.extractfile(image), tar.extractfile(label)
                assert image_file is not None
                assert label_file is not None
                seen[image_file.read()] = int(label_file.read())
    expected = {Path(photos.path(index)).read_bytes(): label for index, label in enumerate(photos.labels)}
    assert seen == expected
    for index in range(47):
        assert packed.read(index) == photos.read(index)


def test_dali_reads_tars_by_their_indexes(photos: ImageFolder, packed: ImageFolder) -> None:
    tars = sorted(map(str, Path(packed.root).glob("*.tar")))

    @pipeline_def(batch_size=47, num_threads=2, device_id=None)
    def define() -> tuple[object, ...]:
        indexes = [tar.replace(".tar", ".idx") for tar in tars]
        read: Any = fn.readers.webdataset
        return tuple(read(paths=tars, index_paths=indexes, ext=["jpg", "cls"]))

    images, labels = define().run()
    seen = {
        np.asarray(images.at(index)).tobytes(): int(np.asarray(labels.at(index)).tobytes())
        for index in range(47)
    }
    assert seen == {photos.read(index): label for index, label in enumerate(photos.labels)}


def test_the_seed_alone_decides_the_order(manifest: Manifest, tmp_path: Path) -> None:
    orders = []
    for number, seed in enumerate((1, 1, 2)):
        packed = pack(manifest, tmp_path / str(number), shards=2, seed=seed)
        orders.append([(each.shard, each.offset) for each in packed.records])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])
    assert (tmp_path / "0" / "00001.tar").read_bytes() == (tmp_path / "1" / "00001.tar").read_bytes()


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    sizes = {"wide": (200, 100), "tall": (81, 130), "small": (64, 300), "grey": (150, 120)}
    for name, size in sizes.items():
        image = smooth_noise(np.random.default_rng(0), *size)
        image.convert("L" if name == "grey" else "RGB").save(tmp_path / "in" / "a" / f"{name}.png")
    source = check(list_images(tmp_path / "in")).manifest
    pack(source, tmp_path / "out", shards=1, seed=0, reencoding=Reencoding(64, 90))
    done = check(list_images(tmp_path / "out")).manifest
    found = {each.path: (each.width, each.height, each.format, each.colour) for each in done.records}
    assert found == {
        "a/wide.png": (128, 64, "JPEG", "RGB"),
        "a/tall.png": (64, 103, "JPEG", "RGB"),
        "a/small.png": (64, 300, "PNG", "RGB"),
        "a/grey.png": (80, 64, "JPEG", "RGB"),
    }
    kept = {each.path: each.sha256 for each in source.records}["a/small.png"]
    assert kept in {each.sha256 for each in done.records}
    images = open_images(tmp_path / "out")
    (tmp_path / "wide.jpg").write_bytes(images.read(images.files.index("a/wide.png")))
    with Image.open(tmp_path / "wide.jpg") as small, Image.open(tmp_path / "in/a/wide.png") as whole:
        expected = np.asarray(whole.resize((128, 64), Image.Resampling.BICUBIC), np.float64)
        assert np.abs(np.asarray(small) - expected).mean() < 4


def test_deep_pixels_are_not_cut_off(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    deep = np.random.default_rng(0).integers(0, 2**16, (90, 90), np.uint16)
    Image.fromarray(deep).save(tmp_path / "in" / "a" / "1.png")
    source = check(list_images(tmp_path / "in")).manifest
    packed = pack(source, tmp_path / "out", shards=1, seed=0, reencoding=Reencoding(64, 90))
    assert packed.records[0].sha256 == source.records[0].sha256


def test_what_is_made_smaller_is_what_training_sees(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    kinds = (
        "jpeg_cmyk_without_adobe",
        "jpeg_cmyk",
        "png_rgba",
        "turned_tiff_6",
        "turned_tiff_8",
        "turned_png",
    )
    odd = odd_images()
    for kind in kinds:
        (tmp_path / "in" / "a" / kind).with_suffix(".png").write_bytes(odd[f"{kind}.jpg"].data)
    source = check(list_images(tmp_path / "in")).manifest
    assert [fault.path for fault in source.left_out] == ["a/jpeg_cmyk_without_adobe.png"]
    # as an earlier version lists it, which compared no pixels
    path = tmp_path / "in" / "a" / "jpeg_cmyk_without_adobe.png"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    black = dataclasses.replace(
        source.records[0], path=f"a/{path.name}", bytes=path.stat().st_size, sha256=digest
    )
    source = dataclasses.replace(source, records=(black, *source.records), left_out=())
    packed = pack(source, tmp_path / "out", shards=1, seed=0, reencoding=Reencoding(40, 95))
    files, tars = source.images(), open_images(tmp_path / "out")
    for index, (before, after) in enumerate(zip(source.records, packed.records, strict=True)):
        assert ((before.width, before.height), (after.width, after.height)) == ((97, 61), (64, 40))
        whole = Image.fromarray(decoded(files.read(index)))
        expected = np.asarray(whole.resize((64, 40), Image.Resampling.BICUBIC), np.float64)
        assert np.abs(decoded(tars.read(index)) - expected).mean() < 4


def test_an_image_that_cannot_be_made_smaller_is_named(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "class0").mkdir()
    path = tmp_path / "class0" / "1.jpg"
    path.write_bytes(b"no image")
    digest = hashlib.sha256(b"no image").hexdigest()
    record = dataclasses.replace(manifest.records[0], path="class0/1.jpg", bytes=8, sha256=digest)
    bad = dataclasses.replace(manifest, root=str(tmp_path), records=(record,))
    with pytest.raises(DataError, match=f"image {path} cannot be decoded: it is damaged or no image"):
        pack(bad, tmp_path / "out", shards=1, seed=0, reencoding=Reencoding(32, 90))


def test_bad_images_stay_left_out(photos: ImageFolder, tmp_path: Path) -> None:
    shutil.copytree(photos.root, tmp_path / "copy")
    (tmp_path / "copy" / photos.files[8]).write_bytes(b"")
    source = check(list_images(tmp_path / "copy")).manifest
    packed = pack(source, tmp_path / "tars", shards=2, seed=0)
    assert [fault.path for fault in packed.left_out] == [photos.files[8]]
    assert (open_images(tmp_path / "tars").left_out, len(packed.records)) == (1, 46)


def test_tars_are_packed_anew_from_tars(manifest: Manifest, packed: ImageFolder, tmp_path: Path) -> None:
    again = pack(read_manifest(Path(packed.root) / "manifest.jsonl"), tmp_path / "x", shards=5, seed=9)
    assert without_places(again) == list(manifest.records)
    assert check(list_images(tmp_path / "x")).manifest == again


def test_a_file_that_changed_since_the_check_is_refused(photos: ImageFolder, tmp_path: Path) -> None:
    shutil.copytree(photos.root, tmp_path / "copy")
    source = check(list_images(tmp_path / "copy")).manifest
    path = tmp_path / "copy" / photos.files[20]
    contents = bytearray(path.read_bytes())
    contents[-100] ^= 1
    path.write_bytes(contents)
    with pytest.raises(DataError, match=rf"image {path} has other bytes than its manifest says"):
        pack(source, tmp_path / "tars", shards=2, seed=0)
    path.unlink()
    with pytest.raises(DataError, match=rf"image {path} cannot be read"):
        pack(source, tmp_path / "tars", shards=2, seed=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["copy"]


def test_what_was_written_is_compared(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fasttrain.pipelines import pack as module

    add = module._Tar.add

    def flawed(tar: module._Tar, position: int, record: module.Record, data: bytes) -> int:
        return add(tar, position, record, data[:-1] + b"\0" if position == 11 else data)

    monkeypatch.setattr(module._Tar, "add", flawed)
    with pytest.raises(DataError, match=r"tar:class\d/\S+ has other bytes than its manifest says"):
        pack(manifest, tmp_path / "tars", shards=3, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("data", "has other bytes than its manifest says"),
        ("header", "has no header in its tar"),
        ("end", r"is not whole: its tar, .*/0000\d\.tar, ends before it does"),
        ("other", r"has \d+ bytes in its tar, .*/0000\d\.tar, not \d+"),
        ("gone", r"cannot be read in .*/0000\d\.tar: no such file"),
    ],
)
def test_damage_in_a_tar_is_found(packed: ImageFolder, tmp_path: Path, harm: str, reason: str) -> None:
    shutil.copytree(packed.root, tmp_path / "copy")
    copy = open_images(tmp_path / "copy")
    last = max(range(47), key=lambda index: (copy.container(index), copy.span(index)))
    tar = Path(copy.container(last))
    contents = bytearray(tar.read_bytes())
    offset, size = copy.span(last)
    if harm == "data":
        contents[offset + size // 2] ^= 1
    elif harm == "header":
        contents[offset - 500] ^= 1
    elif harm == "other":
        header = tarfile.TarInfo("x.jpg")
        header.size = size + 1
        contents[offset - 512 : offset] = header.tobuf(tarfile.USTAR_FORMAT)
    tar.write_bytes(contents[: offset + size - 5] if harm == "end" else contents)
    if harm == "gone":
        tar.unlink()
    done = check(list_images(tmp_path / "copy")).manifest
    found = {fault.path: fault.reason for fault in done.left_out}
    assert re.match(reason, found[copy.files[last]])
    assert len(found) == 1 or harm == "gone"


def test_a_taken_target_and_too_many_tars_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    for target in (tmp_path, tmp_path / "x"):
        with pytest.raises(ConfigError, match="holds something; allowed: a new folder"):
            pack(manifest, target, shards=1, seed=0)
    for shards in (0, 48):
        with pytest.raises(ConfigError, match=rf"--shards is {shards}; allowed: 1 to the 47 images"):
            pack(manifest, tmp_path / "new", shards=shards, seed=0)
    (tmp_path / "empty").mkdir()
    pack(manifest, tmp_path / "empty", shards=1, seed=0)
    assert open_images(tmp_path / "empty").files
