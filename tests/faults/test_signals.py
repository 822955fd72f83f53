"""Runs that are told to end, hang, or find what is not finite: rows 10, 12, 14, 19 and 28 of the matrix."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fasttrain import checkpoint
from tests.faults.harness import (
    Arena,
    assert_same,
    checkpoints,
    faulty,
    free_port,
    metrics,
    rest_heavy,
)

pytestmark = pytest.mark.faults

Whole = Callable[[int], Path]


def go_on(arena: Arena, arguments: list[str], world: int = 2) -> None:
    """The same command again, to the end."""
    job = arena.train(*arguments, world=world)
    assert job.wait() == [0] * world, job.output


def run_status(folder: Path) -> tuple[str, int]:
    status = json.loads((folder / "status.json").read_text())
    return status["state"], status["exit_status"]


@pytest.mark.parametrize(
    ("fault", "status", "state"),
    rest_heavy(
        ("term:1:2", 75, "preempted"),
        ("term:*:3", 75, "preempted"),
        ("usr1:0:6", 75, "preempted"),
        ("int:1:7", 130, "interrupted"),
        ("term:0:evaluation", 75, "preempted"),
        ("term:1:9", 75, "preempted"),
    ),
)
def test_a_signal_saves_and_ends_all(
    arena: Arena, arguments: list[str], tmp_path: Path, whole: Whole, fault: str, status: int, state: str
) -> None:
    """To all ranks or to one, within an epoch, in an evaluation and at the end."""
    folder = tmp_path / "told"
    folder.mkdir()
    job = arena.train(*arguments, fault=fault, environment={"FASTTRAIN_STATUS": str(folder)})
    assert job.wait() == [status, status], job.output
    assert job.output.count("fasttrain: ") == 1
    assert "Traceback" not in job.output
    assert run_status(tmp_path / "run") == (state, status)
    assert (folder / "exit").read_text().splitlines()[0] == str(status)
    assert (folder / "start").read_text() == "0\n"
    arena.assert_clean()
    at = json.loads(checkpoints(tmp_path / "run")[-1].with_suffix(".json").read_text())["step"]
    go_on(arena, arguments)
    assert f"at step {at}" in (tmp_path / "run" / "log.txt").read_text()
    assert_same(tmp_path / "run", whole(2))


@pytest.mark.heavy
def test_a_signal_at_the_start_ends_at_once(arena: Arena, arguments: list[str], tmp_path: Path) -> None:
    begin = time.monotonic()
    job = arena.train(*arguments, fault="term:*:start")
    assert job.wait() == [75, 75], job.output
    assert time.monotonic() - begin < 60
    assert not (tmp_path / "run").exists()


@pytest.mark.heavy
def test_a_signal_in_a_save(arena: Arena, arguments: list[str], tmp_path: Path, whole: Whole) -> None:
    job = arena.train(*arguments, save_fault="term:half:2")
    assert job.wait() == [75, 75], job.output
    for path in checkpoints(tmp_path / "run"):
        checkpoint.load(path)
    arena.assert_clean()
    go_on(arena, arguments)
    assert_same(tmp_path / "run", whole(2))


@pytest.mark.heavy
def test_a_second_signal_ends_at_once(
    arena: Arena, arguments: list[str], tmp_path: Path, whole: Whole
) -> None:
    """In a save that takes 20 seconds. What it leaves is removed by the next start."""
    job = arena.train(*arguments, save_fault="slow:half:2")
    metrics_file = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while (
        not list((tmp_path / "run" / "checkpoints").glob(".step-00000004*")) and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert metrics_file.exists()
    job.signal(signal.SIGTERM)
    time.sleep(4)  # signals within 3 seconds count as one
    begin = time.monotonic()
    job.signal(signal.SIGTERM)
    assert job.wait() == [75, 75], job.output
    assert time.monotonic() - begin < 5
    assert "nothing was saved since the last checkpoint" in job.output
    go_on(arena, arguments)
    assert_same(tmp_path / "run", whole(2))


def test_a_rank_that_hangs_ends_the_other(
    arena: Arena, arguments: list[str], tmp_path: Path, whole: Whole
) -> None:
    """Without torchrun: rank 1 is stopped, rank 0 leaves by itself; let go on, rank 1 leaves as well."""
    job = arena.train(*arguments, "--run.step-timeout", "5", fault="stop:1:4")
    assert job.processes[0].wait(job.limit) == 7, job.output
    assert "no step was done for 5 s" in job.output
    assert job.processes[1].poll() is None
    job.signal(signal.SIGCONT, [1])
    assert job.wait() == [7, 7], job.output
    arena.assert_clean()
    go_on(arena, arguments)
    assert_same(tmp_path / "run", whole(2))


@pytest.mark.heavy
def test_a_hung_rank_ends_the_run(arena: Arena, arguments: list[str], tmp_path: Path, whole: Whole) -> None:
    """Rank 1 is stopped; rank 0 says where it hangs, and torchrun ends the other."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
        f"--log-dir={tmp_path}",
    ]
    command = [*launcher, f"--master-port={free_port()}", "--module", "--", "fasttrain", "train", *arguments]
    begin = time.monotonic()
    job = arena.start(
        [*command, "--run.step-timeout", "15"],
        {**faulty("stop:1:4"), "FASTTRAIN_STATUS": str(tmp_path)},
        limit=150,
    )
    metrics_file = tmp_path / "run" / "metrics.jsonl"
    while not metrics_file.exists() or len(metrics_file.read_text().splitlines()) < 2:
        assert time.monotonic() - begin < 90, job.output
        time.sleep(0.1)
    stopped = time.monotonic()
    assert job.wait() == [1], job.output  # torchrun's own status
    assert time.monotonic() - stopped < 60
    assert (tmp_path / "exit").read_text().splitlines()[0] == "7"
    assert "no step was done for 15 s" in job.output
    assert "Thread 0x" in job.output
    arena.assert_clean()
    go_on(arena, arguments)
    assert_same(tmp_path / "run", whole(2))


def test_what_is_not_finite_stops_both_before_the_update(
    arena: Arena, arguments: list[str], tmp_path: Path
) -> None:
    """One rank's images are NaN at step 6: no later checkpoint exists, and the last holds no NaN."""
    job = arena.train(*arguments, fault="nan:1:6")
    assert job.wait() == [5, 5], job.output
    assert "the gradient's norm became nan at step 7" in job.output
    assert job.output.count("fasttrain: ") == 1
    newest = checkpoints(tmp_path / "run")[-1]
    assert newest.name == "step-00000006.pt"
    for value in checkpoint.load(newest)["network"].values():
        assert value.isfinite().all()
    assert run_status(tmp_path / "run") == ("failed", 5)


@pytest.mark.heavy
def test_what_is_not_finite_can_be_left_out(arena: Arena, arguments: list[str], tmp_path: Path) -> None:
    """One update is left out and counted; nothing of it stays, in the running statistics neither."""
    job = arena.train(*arguments, "--run.skip-nonfinite", "2", fault="nan:1:6")
    assert job.wait() == [0, 0], job.output
    assert [line["skipped"] for line in metrics(tmp_path / "run")] == [0, 0, 0, 0, 1, 1]
    assert all(isinstance(line["loss"], float) for line in metrics(tmp_path / "run"))
    state = checkpoint.load(checkpoints(tmp_path / "run")[-1])
    for part in ("network", "ema"):
        for value in state[part].values():
            assert torch.isfinite(value).all()


@pytest.mark.heavy
def test_more_in_a_row_than_allowed_ends_the_run(arena: Arena, arguments: list[str]) -> None:
    fault = ",".join(f"nan:0:{step}" for step in range(3, 9))
    job = arena.train(*arguments, "--run.skip-nonfinite", "2", world=1, fault=fault)
    assert job.wait() == [5], job.output
    assert "nan at step 6 (3 in a row)" in job.output


@pytest.mark.heavy
def test_memory_that_one_rank_lacks(arena: Arena, arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "told"
    folder.mkdir()
    job = arena.train(*arguments, fault="oom:1:3", environment={"FASTTRAIN_STATUS": str(folder)})
    assert job.wait() == [6, 6], job.output
    assert "rank 1: out of memory with run.batch 8, 4 images per process; lower --run.batch" in job.output
    assert (folder / "exit").read_text().startswith("6\n")
    assert "Traceback" not in job.output
