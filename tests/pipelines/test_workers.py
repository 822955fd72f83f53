"""Work in other processes outlives what kills one, tells which item did, and needs little of the system."""

from __future__ import annotations

import multiprocessing.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fasttrain.errors import ConfigError, DataError
from fasttrain.pipelines import workers
from fasttrain.pipelines.workers import Killed, Workers, alone, shorten_sockets

from .deadly import doubled, failed, killed, named_at_last

pytestmark = pytest.mark.pipelines

PRELOAD = "fasttrain.pipelines.examine"
TASKS = [tuple(range(start, start + 5)) for start in range(0, 60, 5)]


def mark(item: Any, death: Killed) -> Any:
    return f"{item} {death}"


@pytest.mark.parametrize("count", [1, 2])
def test_the_item_that_kills_is_known_and_the_others_have_results(count: int) -> None:
    with Workers(PRELOAD, count) as pool:
        results = [result for found in pool.map(doubled, TASKS, mark) for result in found]
    expected: list[Any] = [2 * item for item in range(60)]
    expected[13], expected[14] = "13 was killed by SIGSEGV", "14 was killed by SIGSEGV"
    assert results == expected


def test_a_process_killed_from_outside_loses_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "7"
    victim.touch()
    tasks = [(tmp_path / str(number),) for number in range(20)]
    with Workers(PRELOAD, 2) as pool:
        results = [result for found in pool.map(named_at_last, tasks, mark) for result in found]
    assert results == [str(number) for number in range(20)]
    assert not victim.exists()


def test_memory_is_blamed_where_the_system_kills() -> None:
    with Workers(PRELOAD, 1) as pool, pytest.raises(DataError, match="short of memory"):
        list(pool.map(killed, [(1, 2)], mark))


def test_alone_hands_over_what_came_of_it() -> None:
    assert alone(doubled, (1, 2), PRELOAD) == [2, 4]
    with pytest.raises(ValueError, match=r"no \(3,\)"):
        alone(failed, (3,), PRELOAD)
    with pytest.raises(Killed, match="was killed by SIGSEGV"):
        alone(doubled, (13,), PRELOAD)


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A folder whose path is longer than a socket's may be."""
    folder = tmp_path / "/".join(["scratch-of-the-job"] * 12)
    folder.mkdir(parents=True)
    assert len(str(folder)) > 200
    return folder


def test_images_are_checked_and_packed_with_a_long_tmpdir(long: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / "a" / "0.png")
    words = ["data", "pack", str(tmp_path / "images"), "-o", str(tmp_path / "tars"), "--shards", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "fasttrain", *words],
        env=os.environ | {"TMPDIR": str(long)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "holds 1 images" in done.stdout
    assert not list(long.iterdir())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where multiprocessing would make its folder."""
    places: list[str] = []
    monkeypatch.setattr(multiprocessing.util, "get_temp_dir", lambda: places.append(tempfile.gettempdir()))
    return places


def test_sockets_lie_elsewhere_only_where_they_must(
    long: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    shorten_sockets()
    assert made == ["/tmp"]
    assert tempfile.gettempdir() == str(long)
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    shorten_sockets()
    assert made == ["/tmp"]


def test_no_place_for_sockets_is_one_message(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) == str(long))
    with pytest.raises(ConfigError, match=r"TMPDIR is \S+scratch.* /tmp cannot .*allowed: a folder whose"):
        shorten_sockets()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError("none")))
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(ConfigError, match="TMPDIR is '/nowhere'; allowed: a folder that can be written to"):
        shorten_sockets()


def test_no_place_for_semaphores_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", refuse)
    with pytest.raises(ConfigError, match=r"^/dev/shm cannot be written to \(read-only file system\); allow"):
        Workers(preload="json")
