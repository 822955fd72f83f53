"""`data check` finds what a decoder can notice, takes what training takes, and can be interrupted."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fasttrain.config import Data
from fasttrain.errors import ConfigError, DataError
from fasttrain.pipelines.check import check, list_images
from fasttrain.pipelines.folder import ImageFolder, scan
from fasttrain.pipelines.workers import Killed, Workers
from tests.pipelines.loaders import train_loader

from .conftest import smooth_noise

pytestmark = pytest.mark.pipelines


def middle(path: Path, replacement: Callable[[int], bytes]) -> None:
    """Put other bytes into the middle of a file."""
    contents = bytearray(path.read_bytes())
    length = len(contents) // 6
    start = len(contents) // 2
    contents[start : start + length] = replacement(length)
    path.write_bytes(contents)


def link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def save(path: Path, format: str, mode: str = "RGB") -> None:
    with Image.open(path) as image:
        image.convert(mode).save(path, format)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "is truncated"),
    "end": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "is truncated"),
    "header": (lambda path: path.write_bytes(path.read_bytes()[:100]), "is no image|cannot be decoded"),
    "text": (lambda path: path.write_text("no picture\n" * 50), "is no image"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(3000)), "is no image"),
    "gif": (lambda path: save(path, "GIF"), "is a GIF image; allowed: JPEG, "),
    "html": (lambda path: path.write_text("<html>404</html>"), "is no image"),
    "random": (lambda path: middle(path, np.random.default_rng(1).bytes), "is damaged: "),
    "zeros": (lambda path: middle(path, bytes), "is damaged: |is truncated"),
    "cut out": (lambda path: middle(path, lambda length: b""), "is damaged: |is truncated"),
    "dangling": (lambda path: link(path, "nowhere"), "cannot be read: no such file"),
    "a loop": (lambda path: link(path, path.name), "cannot be read: too many levels"),
}


@pytest.fixture
def many(tmp_path: Path) -> ImageFolder:
    """300 links to 30 images in 3 classes."""
    return write_many(tmp_path / "many", 300)


def write_many(root: Path, count: int, size: tuple[int, int] = (300, 200)) -> ImageFolder:
    originals = 30
    rng = np.random.default_rng(0)
    for index in range(count):
        path = root / f"class{index % 3}" / f"{index:05}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index < originals:
            smooth_noise(rng, *size).save(path, quality=90)
        else:
            os.link(root / f"class{index % originals % 3}" / f"{index % originals:05}.JPEG", path)
    return scan(root)


def plant(folder: ImageFolder, every: int) -> dict[str, str]:
    """Damage every so many images in turn; their paths, and what is to be said of each."""
    planted = {}
    kinds = list(DAMAGES.values())
    for turn, index in enumerate(range(7, len(folder.files), every)):
        path = Path(folder.path(index))
        contents = path.read_bytes()
        path.unlink()  # the other links stay good
        path.write_bytes(contents)
        harm, reason = kinds[turn % len(kinds)]
        harm(path)
        planted[folder.files[index]] = reason
    return planted


def assert_found(planted: dict[str, str], folder: ImageFolder, journal: Path | None = None) -> float:
    done = check(list_images(Path(folder.root)), journal=journal)
    found = {fault.path: fault.reason for fault in done.manifest.left_out}
    assert found.keys() == planted.keys()
    for path, reason in planted.items():
        assert re.match(reason, found[path]), (path, found[path])
    assert {each.path for each in done.manifest.records} == set(folder.files) - planted.keys()
    return done.cores


def test_every_damage_is_found_and_nothing_else(many: ImageFolder) -> None:
    planted = plant(many, 11)
    assert len(planted) >= 2 * len(DAMAGES)
    assert_found(planted, many)


@pytest.mark.heavy
def test_20_000_images_keep_the_cores_busy(tmp_path: Path) -> None:
    """On a machine with nothing else to do."""
    folder = write_many(tmp_path / "many", 20_000, (500, 375))
    busy = assert_found(plant(folder, 501), folder, tmp_path / "journal")
    assert busy >= 0.9 * len(os.sched_getaffinity(0))


def test_records_are_what_pillow_and_sha256_say(photos: ImageFolder) -> None:
    manifest = check(list_images(Path(photos.root))).manifest
    assert manifest.left_out == ()
    for record, index in zip(manifest.records, range(47), strict=True):
        contents = Path(photos.path(index)).read_bytes()
        with Image.open(photos.path(index)) as image:
            seen = (image.format, image.width, image.height, image.mode)
        assert (record.format, record.width, record.height, record.colour) == seen
        assert (record.path, record.label) == (photos.files[index], photos.labels[index])
        assert (record.bytes, record.sha256) == (len(contents), hashlib.sha256(contents).hexdigest())
        assert record.orientation == 1


def write_oddities(root: Path) -> dict[str, tuple[str, str, int, int, int]]:
    """Unusual images that training takes; what should be recorded of each."""
    root.mkdir()
    picture = smooth_noise(np.random.default_rng(0), 60, 40)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    cases = {
        "cmyk.jpg": ("JPEG", "CMYK", 60, 40, 1),
        "grey.jpg": ("JPEG", "L", 60, 40, 1),
        "dot.jpg": ("JPEG", "RGB", 1, 1, 1),
        "wide.jpg": ("JPEG", "RGB", 20_000, 30, 1),
        "rotated.jpg": ("JPEG", "RGB", 60, 40, 6),
        "png.JPEG": ("PNG", "RGB", 60, 40, 1),
        "alpha.png": ("PNG", "RGBA", 60, 40, 1),
        "palette.png": ("PNG", "P", 60, 40, 1),
        "webp.JPEG": ("WEBP", "RGB", 60, 40, 1),
        "two.jpg": ("MPO", "RGB", 60, 40, 1),
    }
    for name, (kind, mode, width, height, orientation) in cases.items():
        image = picture.resize((width, height)).convert(mode)
        options: dict[str, Any] = {"exif": rotated} if orientation != 1 else {}
        if kind == "MPO":
            options = {"save_all": True, "append_images": [picture]}
        image.save(root / name, kind, **options)
    return cases


def test_unusual_images_are_good_and_train(tmp_path: Path) -> None:
    cases = write_oddities(tmp_path / "a")
    done = check(list_images(tmp_path)).manifest
    assert done.left_out == ()
    found = {
        each.path: (each.format, each.colour, each.width, each.height, each.orientation)
        for each in done.records
    }
    assert found == {f"a/{name}": case for name, case in cases.items()}
    loader = train_loader(
        Data(crop=32, threads=2),
        done.images(),
        batch=len(cases),
        seed=0,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    for epoch in range(3):
        (batch,) = loader.epoch(epoch)
        assert batch.images.isfinite().all()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_other_formats_cut_short_are_found(tmp_path: Path, format: str) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "1.jpg"
    smooth_noise(np.random.default_rng(0), 90, 90).save(path, format)
    assert check(list_images(tmp_path)).manifest.records[0].format == format
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    (fault,) = check(list_images(tmp_path)).manifest.left_out
    assert re.match("cannot be decoded|is truncated", fault.reason)


class Interruption(Exception):
    pass


def interrupted(folder: ImageFolder, journal: Path, after: int) -> None:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done >= after:
            raise Interruption

    with pytest.raises(Interruption):
        check(list_images(Path(folder.root)), journal=journal, advance=advance)


def test_an_interrupted_check_goes_on_where_it_was(many: ImageFolder, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    whole = check(list_images(Path(many.root))).manifest
    interrupted(many, journal, 100)
    kept = len(journal.read_text().splitlines()) - 1
    assert 100 <= kept < 300
    with journal.open("a") as file:  # killed while it wrote
        file.write('[]\n{"path": "class1/00001.JPEG", "stamp": 1}\n{"path": "class1/0')
    done = check(list_images(Path(many.root)), journal=journal)
    assert (done.resumed, done.manifest) == (kept, whole)
    again = check(list_images(Path(many.root)), journal=journal)
    assert (again.resumed, again.manifest) == (300, whole)


def test_what_changed_since_is_checked_again(many: ImageFolder, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    planted = plant(many, 40)
    assert_found(planted, many, journal)
    victim = many.files[100]
    path = Path(many.path(100))
    contents = path.read_bytes()
    path.unlink()
    path.write_bytes(contents[: len(contents) // 2])
    mended = next(iter(planted))
    shutil.copy(many.path(0), many.root + "/" + mended)
    expected = {name: reason for name, reason in planted.items() if name != mended} | {victim: "is truncated"}
    assert_found(expected, many, journal)


def test_a_journal_of_another_folder_is_not_used(
    many: ImageFolder, photos: ImageFolder, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    check(list_images(Path(photos.root)), journal=journal)
    assert check(list_images(Path(many.root)), journal=journal).resumed == 0


def test_a_manifest_is_checked_against_its_files(photos: ImageFolder, tmp_path: Path) -> None:
    shutil.copytree(photos.root, tmp_path / "copy")
    first = check(list_images(tmp_path / "copy")).manifest
    first.write(tmp_path / "m.jsonl")
    path = tmp_path / "copy" / photos.files[3]
    smooth_noise(np.random.default_rng(5), 50, 50).save(path)
    again = check(list_images(tmp_path / "m.jsonl")).manifest
    assert again.records == first.records[:3] + first.records[4:]
    assert [(fault.path, fault.reason) for fault in again.left_out] == [
        (photos.files[3], "has other bytes than its manifest says")
    ]


def test_given_classes_set_the_labels(photos: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("class2\nclass0\nclass1")
    listing = list_images(Path(photos.root), str(tmp_path / "names"))
    assert listing.images.classes == ("class2", "class0", "class1")
    assert listing.images.files[0].startswith("class2/")
    (tmp_path / "names").write_text("class0\nclass1\nx")
    with pytest.raises(DataError, match=r"1 missing \(x\), 1 extra \(class2\)"):
        list_images(Path(photos.root), str(tmp_path / "names"))


def test_a_packed_folder_has_its_own_classes(packed: ImageFolder) -> None:
    with pytest.raises(ConfigError, match="whose manifest has its own"):
        list_images(Path(packed.root), "natural")


def test_a_journal_that_cannot_be_written_is_named(photos: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot keep the check's progress in .*none"):
        check(list_images(Path(photos.root)), journal=tmp_path / "none" / "journal")


def test_a_damaged_manifest_in_the_folder_is_made_anew(photos: ImageFolder, tmp_path: Path) -> None:
    shutil.copytree(photos.root, tmp_path / "copy")
    (tmp_path / "copy" / "manifest.jsonl").write_text("damaged")
    assert len(check(list_images(tmp_path / "copy")).manifest.records) == 47


def unexpected(item: object, death: Killed) -> Any:
    raise AssertionError(f"{item} {death}")


def test_an_interruption_waits_for_a_process_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    with Workers(preload="fasttrain.pipelines.examine", count=1) as workers:
        submit = workers._pool.submit

        def interrupted(*task: Any) -> Future[Any]:
            signal.raise_signal(signal.SIGINT)
            started.append(submit(*task))
            return started[0]

        monkeypatch.setattr(workers._pool, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(workers.map(tuple, [(-1,)], unexpected))
    assert started[0].result()[2] == (-1,)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
