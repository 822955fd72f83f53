"""Fault tests: their arena, and the images and arguments of a small run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Arena, run_arguments, write_images


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
    """A small run into `tmp_path / "run"`."""
    return run_arguments(images, tmp_path)


@pytest.fixture(scope="session")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of an uninterrupted run of so many processes, made once for all tests."""
    runs: dict[int, Path] = {}

    def of(world: int) -> Path:
        if world not in runs:
            folder = tmp_path_factory.mktemp("whole")
            job = Arena(folder).train(*run_arguments(images, folder), world=world)
            assert job.wait() == [0] * world, job.output
            runs[world] = folder / "run"
        return runs[world]

    return of
