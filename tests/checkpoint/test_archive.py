"""A run's folder of checkpoints: those without a manifest are never loaded and never lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain import checkpoint
from fasttrain.checkpoint.archive import Archive
from fasttrain.errors import CheckpointError


def state(step: int) -> dict[str, Any]:
    parts: dict[str, Any] = {name: kind() for name, kind in checkpoint.CONTENTS.items()}
    return parts | {"network": {"w": torch.full((2,), float(step))}}


def unsure(folder: Path, step: int) -> bytes:
    """A checkpoint whose writer was killed before its manifest; its content."""
    path = folder / f"step-{step:08}.pt"
    checkpoint.save(path, state(step))
    return path.read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


def test_a_checkpoint_without_a_manifest_is_put_by_and_told(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.save(4, state(4), {}, best=False)
    content = unsure(tmp_path, 6)
    (line,) = archive.clean()
    assert f"warning: {tmp_path / 'step-00000006.pt'} has no manifest" in line
    assert "kept as step-00000006.pt.without-manifest" in line
    assert (tmp_path / "step-00000006.pt.without-manifest").read_bytes() == content
    found = archive.newest()
    assert found is not None
    assert found.path.name == "step-00000004.pt"
    assert archive.clean() == []
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize(("steps", "kept"), [((3, 5), [5]), ((5, 3), [3, 5]), ((5, 5), [5])])
def test_of_those_put_by_a_newer_one_takes_the_place(
    tmp_path: Path, steps: tuple[int, int], kept: list[int]
) -> None:
    """So a run that is killed in each save does not fill the disk; what is newer stays."""
    for step in steps:
        unsure(tmp_path, step)
        assert len(Archive(tmp_path).clean()) == 1
    assert names(tmp_path) == [f"step-{step:08}.pt.without-manifest" for step in kept]


def test_all_that_are_found_at_once_are_kept(tmp_path: Path) -> None:
    """As where the manifests were lost in a copy."""
    for step in (3, 5, 7):
        unsure(tmp_path, step)
    assert len(Archive(tmp_path).clean()) == 3
    assert len(names(tmp_path)) == 3


def test_a_second_name_of_a_complete_checkpoint_just_goes(tmp_path: Path) -> None:
    """Left by a process that was killed while it saved a step again."""
    archive = Archive(tmp_path)
    archive.save(4, state(4), {}, best=False)
    os.link(tmp_path / "step-00000004.pt", tmp_path / "step-00000004-before.pt")
    assert archive.clean() == []
    assert names(tmp_path) == ["step-00000004.json", "step-00000004.pt"]


def test_a_folder_with_nothing_else_names_it(tmp_path: Path) -> None:
    """And the file itself can be read where somebody asks for it."""
    unsure(tmp_path, 6)
    archive = Archive(tmp_path)
    assert archive.newest() is None
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .*; step-00000006\.pt has no manifest; allowed"
    ):
        archive.chosen("last")
    assert checkpoint.load(tmp_path / "step-00000006.pt")["network"]["w"][0] == 6
    archive.clean()
    with pytest.raises(CheckpointError, match=r"step-00000006\.pt\.without-manifest has no manifest"):
        archive.chosen("best")
    assert checkpoint.load(tmp_path / "step-00000006.pt.without-manifest")["network"]["w"][0] == 6
