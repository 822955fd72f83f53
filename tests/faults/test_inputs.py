"""Data and settings that cannot be trained on: rows 20 and 21 of the matrix, in real processes."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.harness import Arena, rest_heavy

pytestmark = pytest.mark.faults


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("no picture\n" * 50)


@pytest.mark.heavy
@pytest.mark.parametrize("harm", [truncate, empty, text])
def test_a_bad_image_is_named_by_the_rank_that_has_it(
    arena: Arena, arguments: list[str], images: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """Both ranks leave; the other ends with the same status, since the first told its reason."""
    copies = tmp_path / "images"
    shutil.copytree(images / "train", copies)
    victim = copies / "class1" / "3.jpg"
    harm(victim)
    folder = tmp_path / "told"
    folder.mkdir()
    job = arena.train(
        *arguments, "--data.train", str(copies), environment={"FASTTRAIN_STATUS": str(folder)}, limit=90
    )
    assert set(job.wait()) <= {3, 7}, job.output  # 7: rank 0, which held the store, was first and is gone
    assert job.output.count(f"image {victim} ") == 1
    assert "Traceback" not in job.output
    assert (folder / "exit").read_text().startswith("3\n")


@pytest.mark.heavy
def test_a_missing_image_is_named(arena: Arena, arguments: list[str], images: Path, tmp_path: Path) -> None:
    """It is listed, and gone when it is read: by a manifest."""
    copies = tmp_path / "images"
    shutil.copytree(images / "train", copies)
    manifest = tmp_path / "train.jsonl"
    check = [sys.executable, "-m", "fasttrain", "data", "check", str(copies), "-o", str(manifest)]
    job = arena.start(check, limit=90)
    assert job.wait() == [0], job.output
    (copies / "class1" / "3.jpg").unlink()
    job = arena.train(*arguments, "--data.train", str(manifest), world=1)
    assert job.wait() == [3], job.output
    assert "class1/3.jpg" in job.output


@pytest.mark.heavy
def test_odd_images_are_trained_on(arena: Arena, arguments: list[str], images: Path, tmp_path: Path) -> None:
    """CMYK, grey, and a single pixel are images like others."""
    copies = tmp_path / "images"
    shutil.copytree(images / "train", copies)
    for name, mode, side in (("a", "CMYK", 40), ("b", "L", 40), ("c", "RGB", 1)):
        Image.new(mode, (side, side)).save(copies / "class0" / f"{name}.jpg")
    job = arena.train(*arguments, "--data.train", str(copies), "--run.epochs", "1", world=1)
    assert job.wait() == [0], job.output


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    rest_heavy(
        (["--optim.speed", "3"], 2, "--optim.speed"),
        (["--data.train", "/nowhere"], 3, "/nowhere"),
        (["--run.batch", "64"], 2, "run.batch is 64"),
        (["--data.num-classes", "2"], 2, "data.num_classes is 2; allowed: 0 or at least the 3"),
        (["--run.batch", "7"], 2, "run.batch is 7; allowed: a multiple of the 2 processes"),
        first=3,
    ),
)
def test_a_wrong_setting_is_one_message(
    arena: Arena, arguments: list[str], tmp_path: Path, changes: list[str], status: int, words: str
) -> None:
    before = processor_seconds()
    job = arena.train(*arguments, *changes)
    assert job.wait() == [status, status], job.output
    assert words in " ".join(job.output.replace("│", " ").split())
    assert "Traceback" not in job.output
    assert not (tmp_path / "run").exists()
    assert processor_seconds() - before < 60  # 10 by the clock of an idle machine


def processor_seconds() -> float:
    """What the processes that ended have taken, however busy the machine was."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.heavy
def test_an_empty_class_is_one_message(
    arena: Arena, arguments: list[str], images: Path, tmp_path: Path
) -> None:
    copies = tmp_path / "images"
    shutil.copytree(images / "train", copies)
    for path in (copies / "class1").iterdir():
        path.unlink()
    job = arena.train(*arguments, "--data.train", str(copies))
    assert job.wait() == [3, 3], job.output
    assert "class1" in job.output
    assert job.output.count("fasttrain: ") == 1
