"""Fault tests: their arena, and the images and arguments of a small run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Arena, write_images


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    """A folder with the processes started in it; afterwards no process and no unfinished file is left."""
    arena = Arena(tmp_path)
    try:
        yield arena
        arena.assert_clean()
    finally:
        arena.stop()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ (42 images) and val/ (15 images) of 3 classes."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 14, 0)
    write_images(folder / "val", 5, 1)
    return folder


@pytest.fixture
def arguments(images: Path, tmp_path: Path) -> list[str]:
    """`demo` on these images: 2 epochs of 5 steps of 8 images, every step logged, in the folder `run`."""
    return [
        "demo",
        *("--data.train", str(images / "train"), "--data.val", str(images / "val"), "--data.builtin", "none"),
        *("--data.num-classes", "0", "--data.threads", "1"),
        *("--evaluation.every", "1", "--evaluation.subnets", "0", "--evaluation.batch", "8"),
        *("--optim.ema", "0.5", "--run.epochs", "2", "--run.batch", "8", "--run.log-every", "1"),
        *("--run.device", "cpu", "--run.folder", str(tmp_path), "--run.name", "run"),
    ]
