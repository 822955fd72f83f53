"""`fasttrain data check|pack` as commands, and training from what they write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasttrain.errors import DataError
from fasttrain.pipelines.manifest import open_images, read_manifest
from fasttrain.trainer import train

from .pipelines.odd_images import odd_images
from .test_cli import run
from .test_trainer import configure, metrics, write_images

pytestmark = pytest.mark.pipelines


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with train/ (42 images) and val/ (15)."""
    write_images(tmp_path / "images" / "train", 14, 0)
    write_images(tmp_path / "images" / "val", 5, 1)
    return tmp_path / "images"


def spoil(images: Path) -> list[str]:
    """Two bad training images, by their paths in the folder."""
    (images / "train" / "class0" / "3.jpg").write_bytes(b"")
    (images / "train" / "class2" / "5.jpg").write_text("no image")
    return ["class0/3.jpg", "class2/5.jpg"]


def test_good_images_are_told_of_and_listed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(capsys, "data", "check", str(images / "train"))
    assert (status, err) == (0, "")
    assert "42 images of 3 classes, " in out
    assert ": 42 good, 0 bad\nformats: JPEG 42; colour: RGB 42\nchecked in " in out
    assert sorted(tmp_path.rglob("*")) == before
    status, out, _ = run(capsys, "data", "check", str(images / "train"), "-o", str(tmp_path / "m.jsonl"))
    assert status == 0
    assert f"{tmp_path / 'm.jsonl'} lists the 42 good images" in out
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "m.jsonl"])


def test_bad_images_are_named_or_left_out(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.jsonl"
    command = ("data", "check", str(images / "train"), "-o", str(output))
    bad = spoil(images)
    status, out, err = run(capsys, *command)
    assert status == 3
    assert f"{bad[0]} is empty\n{bad[1]} is no image\n42 images" in out
    assert err.startswith("fasttrain: 2 of 42 images are bad, the first: class0/3.jpg is empty; mend or")
    assert not output.exists()
    status, out, err = run(capsys, *command, "--leave-out-bad")
    assert (status, err) == (0, "")
    assert "(40 of them before)" in out  # the first check's progress was kept
    assert not output.with_name("m.jsonl.part").exists()
    manifest = read_manifest(output)
    assert [fault.path for fault in manifest.left_out] == bad
    assert len(manifest.records) == 40


def test_a_class_without_a_good_image_is_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (images / "val" / "class1").iterdir():
        path.write_bytes(b"")
    output = str(tmp_path / "m.jsonl")
    status, _, err = run(capsys, "data", "check", str(images / "val"), "-o", output, "--leave-out-bad")
    assert (status, "class class1 has no good image" in err) == (3, True)


def test_a_list_of_classes_sets_the_labels(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, output = tmp_path / "classes.txt", tmp_path / "m.jsonl"
    command = ("data", "check", str(images / "val"), "-o", str(output), "--classes", str(names))
    names.write_text("class2\nclass0\n\nclass1\n")
    assert run(capsys, *command)[0] == 0
    assert open_images(output).classes == ("class2", "class0", "class1")
    for text, words in (("class0\nclass0\n", "'class0' more than once"), ("\n", "holds no name")):
        names.write_text(text)
        status, _, err = run(capsys, *command)
        assert (status, words in err) == (2, True)


def test_packing_a_folder_and_its_manifest(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = str(images / "train"), str(tmp_path / "m.jsonl")
    options = ("--shards", "2", "--shuffle", "7")
    status, out, _ = run(capsys, "data", "pack", source, "-o", str(tmp_path / "tars"), *options)
    assert status == 0
    assert "42 images" in out
    assert "in 2 tars, read back and compared\n" in out
    assert [path.name for path in sorted((tmp_path / "tars").iterdir())] == [
        "00000.idx",
        "00000.tar",
        "00001.idx",
        "00001.tar",
        "manifest.jsonl",
    ]
    status, out, _ = run(capsys, "data", "check", str(tmp_path / "tars"))
    assert (status, ": 42 good, 0 bad" in out) == (0, True)
    spoil(images)
    status, _, err = run(capsys, "data", "pack", source, "-o", str(tmp_path / "more"), *options)
    assert (status, "2 of 42 images are bad" in err) == (3, True)
    run(capsys, "data", "check", source, "-o", output, "--leave-out-bad")
    status, out, _ = run(capsys, "data", "pack", output, "-o", str(tmp_path / "more"), *options)
    assert (status, "read back and compared, 2 bad ones left out" in out) == (0, True)


def test_training_tells_what_is_left_out_or_not_validated(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(images)
    output = str(tmp_path / "m.jsonl")
    run(capsys, "data", "check", str(images / "train"), "-o", output, "--leave-out-bad")
    train(configure(images, tmp_path / "runs", data={"train": output}, run={"max_steps": 2}))
    log = (tmp_path / "runs" / "run" / "log.txt").read_text()
    assert "40 training images of 3 classes, 15 validation images" in log
    assert "data.train: 2 bad images are left out by the manifest" in log
    assert f"data.val: files under {images / 'val'} are not validated (fasttrain data check" in log


def test_a_run_on_a_checked_manifest_gives_equal_losses_twice(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, image in enumerate(odd_images().values()):
        (images / "train" / "class1" / f"odd{number}.tif").write_bytes(image.data)
    output = str(tmp_path / "m.jsonl")
    status, out, _ = run(capsys, "data", "check", str(images / "train"), "-o", output, "--leave-out-bad")
    assert (status, "good at which the decoder writes a line" in out) == (0, True)
    losses = []
    for name in ("one", "two"):
        settings = {"max_steps": 6, "batch": 16, "log_every": 1}
        train(configure(images, tmp_path / name, data={"train": output, "val": ""}, run=settings))
        losses.append([line["loss"] for line in metrics(tmp_path / name / "run", "train")])
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]


def test_training_from_tars_gives_the_files_weights(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        run(capsys, "data", "pack", str(images / part), "-o", str(tmp_path / part), "--shards", "3")
    files = train(configure(images, tmp_path / "files", run={"epochs": 1}))
    tars = train(configure(tmp_path, tmp_path / "tars", run={"epochs": 1}))
    assert files.main == tars.main
    assert files.subnets == tars.subnets
    assert "not validated" not in (tmp_path / "tars" / "run" / "log.txt").read_text()


def test_files_that_are_not_as_the_manifest_says_stop_the_run(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "m.jsonl")
    run(capsys, "data", "check", str(images / "train"), "-o", output)
    (images / "train" / "class1" / "0.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 42 files .* the first: \S+/class1/0\.jpg cannot be read"):
        train(configure(images, tmp_path / "runs", data={"train": output}))
    assert not (tmp_path / "runs").exists()


def write_many(folder: Path) -> Path:
    """600 large images: what decodes them is still at it when a signal comes."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0.jpg", quality=95)
    for index in range(1, 600):
        os.link(folder / "0.jpg", folder / f"{index}.jpg")
    return folder


def test_an_interrupted_command_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "m.jsonl"
    folder = write_many(tmp_path / "many" / "a")
    command = [sys.executable, "-m", "fasttrain", "data", "check", str(folder.parent), "-o", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = tmp_path / "m.jsonl.part"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and (not part.exists() or part.stat().st_size < 3000):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (130, "fasttrain: interrupted\n"), out
    assert not output.exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert ": 600 good, 0 bad" in again.stdout
    assert "of them before)" in again.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.jsonl", "many"]


def test_a_killed_command_leaves_no_process(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fasttrain", "data", "check", str(images / "train"), "-o", "m.jsonl"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)

    def left() -> list[str]:
        found = subprocess.run(["ps", "-o", "pid=", "-s", str(process.pid)], capture_output=True, text=True)
        return found.stdout.split()

    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and len(left()) < 4:  # itself, resource tracker, fork server, a worker
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=240)
    while time.monotonic() < deadline and left():
        time.sleep(0.1)
    assert left() == []


def test_an_ended_pack_leaves_no_files(tmp_path: Path) -> None:
    many = write_many(tmp_path / "many" / "a").parent
    command = [sys.executable, "-m", "fasttrain", "data", "pack", str(many), "-o", "out"]
    before = sorted(tmp_path.iterdir())
    process = subprocess.Popen(
        [*command, "--shards", "1", "--resize-shorter", "64"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(tmp_path.glob(".out-*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (130, "fasttrain: interrupted\n")
    assert sorted(tmp_path.iterdir()) == before


def test_a_list_of_classes_may_start_with_a_mark(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes").write_text("\ufeffclass2\r\n\r\nclass0\r\nclass1", "utf-8")
    options = ("--classes", str(tmp_path / "classes"), "-o", str(tmp_path / "m.jsonl"))
    (images / "val" / "class0" / "notes.txt").touch()
    status, out, err = run(capsys, "data", "check", str(images / "val"), *options)
    assert (status, err) == (0, "")
    assert "1 others ignored, the first: class0/notes.txt; images are CLASS/NAME with .jpg, " in out
    assert read_manifest(tmp_path / "m.jsonl").classes == ("class2", "class0", "class1")


def test_the_commands_import_neither_torch_nor_dali(images: Path) -> None:
    words = f"['data', 'check', {str(images / 'val')!r}]"
    code = (
        "import sys\nfrom fasttrain.cli import main\n"
        f"if __name__ == '__main__':\n    main({words})\n"
        "    assert not {'torch', 'nvidia.dali'} & set(sys.modules)\n"
    )
    script = images / "script.py"
    script.write_text(code)
    subprocess.run([sys.executable, str(script)], check=True, timeout=240, capture_output=True)
