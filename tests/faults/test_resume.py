"""A run that was killed goes on as if it had not been: rows 1 to 4, 24 and 27 of the matrix."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import (
    Arena,
    assert_same,
    checkpoints,
    digests,
    losses,
    metrics,
    rest_heavy,
    run_arguments,
)

pytestmark = pytest.mark.faults

Whole = Callable[[int], Path]


def go_on(arena: Arena, arguments: list[str], world: int = 2, forget: str = "") -> None:
    """The same command again, to the end."""
    job = arena.train(*arguments, world=world, forget=forget)
    assert job.wait() == [0] * world, job.output


def test_two_runs_are_the_same(arena: Arena, arguments: list[str], tmp_path: Path, whole: Whole) -> None:
    go_on(arena, arguments)
    assert_same(tmp_path / "run", whole(2))


@pytest.mark.parametrize("step", rest_heavy(7, *range(7), 8, 9))
def test_a_killed_rank_goes_on_as_uninterrupted(
    arena: Arena, arguments: list[str], tmp_path: Path, whole: Whole, step: int
) -> None:
    """At each step, within an epoch and between; the other rank leaves by itself; a step is logged once."""
    job = arena.train(*arguments, fault=f"kill:1:{step}", limit=60)
    assert job.wait() == [7, -signal.SIGKILL], job.output
    assert "another process of the run died" in job.output
    assert "Traceback" not in job.output
    arena.assert_clean()
    go_on(arena, arguments)
    assert_same(tmp_path / "run", whole(2))
    assert list(losses(tmp_path / "run")) == [2, 4, 5, 6, 8, 10]


@pytest.fixture(scope="module")
def interrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two processes that stands within its second epoch, between two reports."""
    folder = tmp_path_factory.mktemp("interrupted")
    arguments = [*run_arguments(images, folder), "--run.save-steps", "7"]
    job = Arena(folder).train(*arguments, fault="kill:1:8")
    assert job.wait() == [7, -signal.SIGKILL], job.output
    assert checkpoints(folder / "run")[-1].name == "step-00000007.pt"
    return folder / "run"


@pytest.mark.parametrize("forget", rest_heavy("random", "", "loader", "ema", "statistics"))
def test_each_part_of_the_state_is_needed(
    arena: Arena, arguments: list[str], tmp_path: Path, whole: Whole, interrupted: Path, forget: str
) -> None:
    """The controls of the test above: without one part it fails."""
    shutil.copytree(interrupted, tmp_path / "run")
    go_on(arena, arguments, forget=forget)
    if not forget:
        assert_same(tmp_path / "run", whole(2))
        return
    same_losses = losses(tmp_path / "run") == losses(whole(2))
    same = {name: digests(tmp_path / "run")[name] == value for name, value in digests(whole(2)).items()}
    # The average follows the weights; running statistics decide no training loss.
    expected = {
        "random": (False, {"network": False, "optimizer": False, "ema": False}),
        "loader": (False, {"network": False, "optimizer": False, "ema": False}),
        "ema": (True, {"network": True, "optimizer": True, "ema": False}),
        "statistics": (True, {"network": False, "optimizer": True, "ema": False}),
    }
    assert (same_losses, same) == expected[forget]


@pytest.mark.parametrize(
    "point", rest_heavy("half", "first-byte", "before-rename", "after-rename", "before-manifest")
)
def test_killed_in_a_save(
    arena: Arena, arguments: list[str], tmp_path: Path, whole: Whole, point: str
) -> None:
    """The third save, of step 5: what is left is the checkpoint of step 4, whole."""
    job = arena.train(*arguments, world=1, save_fault=f"kill:{point}:3")
    assert job.wait() == [-signal.SIGKILL], job.output
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000002.pt", "step-00000004.pt"]
    go_on(arena, arguments, world=1)
    assert_same(tmp_path / "run", whole(1))
    assert "at step 4" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.heavy
@pytest.mark.parametrize("world", [1, 4])
def test_another_number_of_processes(arena: Arena, arguments: list[str], tmp_path: Path, world: int) -> None:
    """The same images at each global step; the same losses where no layer looks at other images.

    The checkpoint of step 7 is between two reports: the sums of the metrics go over, too.
    """
    name = ["--run.name"]
    records = {name: tmp_path / name for name in ("whole", "parts")}
    for folder in records.values():
        folder.mkdir()
    first = arena.train(
        *arguments, *name, "whole", tiny="plain", environment={"RECORD": str(records["whole"])}
    )
    assert first.wait() == [0, 0], first.output
    started = arena.train(*arguments, "--run.save-steps", "7", *name, "parts", tiny="plain", fault="kill:1:8")
    assert started.wait() == [7, -signal.SIGKILL], started.output
    rest = arena.train(
        *arguments,
        *(*name, "parts"),
        world=world,
        tiny="plain",
        environment={"RECORD": str(records["parts"])},
        limit=180,
    )
    assert rest.wait() == [0] * world, rest.output
    for step in (7, 8, 9):
        images = [sorted((folder / f"{step}.txt").read_text().split()) for folder in records.values()]
        assert images[0] == images[1]
        assert len(images[0]) == 8
    ours, theirs = (
        {line["global_step"]: line["loss"] for line in metrics(tmp_path / run)} for run in ("parts", "whole")
    )
    for step in (8, 10):
        assert ours[step] == pytest.approx(theirs[step], rel=1e-4)


@pytest.mark.heavy
def test_a_run_waits_for_no_one_who_is_gone(arena: Arena, arguments: list[str]) -> None:
    """A rank that never comes: the other leaves by itself, with one line."""
    begin = time.monotonic()
    job = arena.train(
        *arguments, "--run.start-timeout", "20", world=1, environment={"WORLD_SIZE": "2"}, limit=90
    )
    assert job.wait() == [7], job.output
    assert time.monotonic() - begin < 60
    assert "Traceback" not in job.output
