"""A reader that leaves changes nothing of what a command does, nor its exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.__main__ import main as bench
from fasttrain.cli import main
from fasttrain.config import to_dict
from fasttrain.pipelines.manifest import read_manifest
from fasttrain.trained import open_trained

from .test_export import NAMES, images, run  # noqa: F401  (fixtures)


@contextmanager
def no_readers() -> Iterator[None]:
    """Nobody reads stdout and stderr any more; what is inside leaves them as they are."""
    with ExitStack() as opened, pytest.MonkeyPatch.context() as patch:
        for name in ("stdout", "stderr"):
            reader, writer = os.pipe()
            os.close(reader)
            stream = opened.enter_context(io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True))
            patch.setattr(sys, name, stream)
        before = sys.stdout, sys.stderr
        yield
        assert (sys.stdout, sys.stderr) == before


def status_of(*words: str | Path) -> int:
    """Exit status of a command in this process, whose output nobody reads."""
    try:
        with no_readers():
            main([str(word) for word in words])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good images and a bad one."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("0.png", "1.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / "a" / name)
    (tmp_path / "images" / "a" / "2.png").write_text("no image")
    return tmp_path / "images"


def test_a_check_writes_its_manifest(folder: Path, tmp_path: Path) -> None:
    words = ("data", "check", folder, "-o", tmp_path / "m.jsonl")
    assert status_of(*words) == 3
    assert not (tmp_path / "m.jsonl").exists()
    assert status_of(*words, "--leave-out-bad") == 0
    assert len(read_manifest(tmp_path / "m.jsonl").records) == 2
    assert status_of("data", "pack", tmp_path / "m.jsonl", "-o", tmp_path / "tars", "--shards", "1") == 0
    assert (tmp_path / "tars" / "00000.tar").exists()


def test_what_is_evaluated_analyzed_exported_and_reported_is_written(
    run: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    cpu = ("--device", "cpu")
    (run / "config.json").write_text(json.dumps(to_dict(open_trained(run).config)))
    assert status_of("evaluate", run, "--subnets", "0", "--output", tmp_path / "v.json", *cpu) == 0
    assert status_of("export", run, "--format", "safetensors", "-o", tmp_path / "x.safetensors") == 0
    assert status_of("analyze", "delete-one", run, "-o", tmp_path / "analysis", *cpu) == 0
    assert status_of("report", run, "-o", tmp_path / "r.html") == 0
    for name in ("v.json", "x.safetensors", "analysis/delete-one.json", "analysis/delete-one.png", "r.html"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("recipes", 0),
        ("show demo", 0),
        ("--help", 0),
        ("data check --help", 0),
        ("fly", 2),
        ("train demo --optim.lr -1", 2),
        ("data check /nowhere", 3),
    ],
)
def test_the_exit_status_is_the_commands(words: str, status: int) -> None:
    assert status_of(*words.split()) == status


def test_measurements_outlast_their_readers_too() -> None:
    with no_readers():
        assert bench(["--help"]) == 0
        assert bench(["fly"]) == 2


def test_without_our_care_a_reader_that_leaves_ends_a_command() -> None:
    """The control of the tests above."""
    with no_readers(), pytest.raises(BrokenPipeError):
        print("a line", flush=True)


def test_no_traceback_comes_at_the_very_end(folder: Path, tmp_path: Path) -> None:
    """Of what is still to be written when the interpreter ends."""
    reader, writer = os.pipe()
    os.close(reader)
    words = ["data", "check", str(folder), "-o", str(tmp_path / "m.jsonl"), "--leave-out-bad"]
    done = subprocess.run(
        [sys.executable, "-m", "fasttrain", *words], stdout=writer, stderr=subprocess.PIPE, timeout=120
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "m.jsonl").exists()


def test_a_full_disk_behind_the_output_is_told_as_such() -> None:
    command = [sys.executable, "-m", "fasttrain", "recipes"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip() == "fasttrain: [Errno 28] No space left on device: '<stdout>'"
