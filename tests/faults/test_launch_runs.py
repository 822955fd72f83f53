"""launch.sh with real training: two processes on one machine, killed, interrupted, told to end."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import ROOT, Arena, Job, assert_same, faulty, metrics

pytestmark = pytest.mark.faults

LAUNCH = str(ROOT / "launch.sh")


def launch(arena: Arena, *arguments: str, fault: str = "", **settings: str) -> Job:
    """Two processes of the tiny network by launch.sh."""
    common = {**faulty(fault), "PYTHON": sys.executable, "PROCESSES": "2"}
    return arena.start(["bash", LAUNCH, *arguments], {**common, **settings}, limit=400)


@pytest.fixture
def reference(whole: Callable[[int], Path]) -> Path:
    """The uninterrupted run of two processes."""
    return whole(2)


def _last_step(run: Path) -> int:
    """The last global step that a run has reported."""
    path = run / "metrics.jsonl"
    return max([0, *(line["global_step"] for line in metrics(run))]) if path.exists() else 0


def wait_for_step(job: Job, run: Path, step: int) -> None:
    end = time.monotonic() + job.limit
    while _last_step(run) < step:
        assert time.monotonic() < end, job.output
        assert job.processes[0].poll() is None, job.output
        time.sleep(0.1)


def workers(arena: Arena, *, agent: bool) -> list[int]:
    """torchrun, or the trainer's processes."""
    found = []
    for process in arena.processes():
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        is_agent = b"fasttrain.launch.torchrun" in words
        if b"train" in words and is_agent == agent and not words[0].endswith((b"bash", b"env")):
            found.append(process)
    return found


@pytest.mark.heavy
def test_a_killed_rank_is_restarted(
    arena: Arena, arguments: list[str], tmp_path: Path, reference: Path
) -> None:
    """Row 2, ten times: rank 1 kills itself in mid-epoch."""
    for repeat in range(10):
        name = f"run{repeat}"
        settings = {"FAULT_ONCE": str(tmp_path / f"once{repeat}")}
        job = launch(arena, *arguments, "--run.name", name, fault="kill:1:7", **settings)
        assert job.wait() == [0], job.output
        assert "was killed by SIGKILL" in job.output
        assert "restart 1 of 3" in job.output
        assert "Traceback" not in job.output
        assert_same(tmp_path / name, reference)


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(
    arena: Arena, arguments: list[str], tmp_path: Path, reference: Path, number: signal.Signals
) -> None:
    """Row 10."""
    job = launch(arena, *arguments, fault="pause:*:3")
    wait_for_step(job, tmp_path / "run", 2)
    job.signal(number)
    assert job.wait() == [130 if number == signal.SIGINT else 75], job.output
    assert "saved at step" in job.output
    assert "Traceback" not in job.output
    assert _last_step(tmp_path / "run") < 10
    job = launch(arena, *arguments)
    assert job.wait() == [0], job.output
    assert_same(tmp_path / "run", reference)


@pytest.mark.heavy
def test_a_killed_launcher_takes_all_along(arena: Arena, arguments: list[str], tmp_path: Path) -> None:
    job = launch(arena, *arguments, fault="pause:*:3")
    wait_for_step(job, tmp_path / "run", 2)
    job.signal(signal.SIGKILL)
    assert job.wait() == [-signal.SIGKILL]
    arena.assert_clean(patience=10)


@pytest.mark.heavy
def test_a_killed_agent_takes_its_workers_along(arena: Arena, arguments: list[str], tmp_path: Path) -> None:
    """Row 13."""
    job = launch(arena, *arguments, fault="pause:*:3", RESTARTS="0")
    wait_for_step(job, tmp_path / "run", 2)
    assert len(workers(arena, agent=False)) == 2
    (agent,) = workers(arena, agent=True)
    os.kill(agent, signal.SIGKILL)
    end = time.monotonic() + 10
    while workers(arena, agent=False):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert job.wait() == [1]


@pytest.mark.heavy
def test_a_killed_agent_is_restarted(
    arena: Arena, arguments: list[str], tmp_path: Path, reference: Path
) -> None:
    job = launch(arena, *arguments, fault="pause:*:7", FAULT_ONCE=str(tmp_path / "once"))
    wait_for_step(job, tmp_path / "run", 6)
    (agent,) = workers(arena, agent=True)
    os.kill(agent, signal.SIGKILL)
    assert job.wait() == [0], job.output
    assert_same(tmp_path / "run", reference)


@pytest.mark.heavy
def test_a_rank_that_raises_at_every_start(arena: Arena, arguments: list[str]) -> None:
    """Row 18: the second start gains the steps up to the last checkpoint, the third nothing."""
    job = launch(arena, *arguments, fault="crash:0:6")
    assert job.wait() == [1]
    assert job.output.count("a fault was asked for") >= 3
    assert job.output.count("restart ") == 2
    assert "of a start at step 6, as the one before: nothing gained" in job.output


@pytest.mark.heavy
def test_a_cause_that_no_restart_helps(arena: Arena, arguments: list[str]) -> None:
    job = launch(arena, *arguments, fault="oom:1:3")
    assert job.wait() == [6], job.output
    assert "launch.sh: exit status" not in job.output


def test_flags_that_torchrun_knows_reach_the_trainer(arena: Arena) -> None:
    """Row 22, through torchrun, whose own options begin with these."""
    flags = ["--max", "x", "--log", "x", "--local", "x", "--role", "x", "-m", "x"]
    program = "import sys, json; print(json.dumps(sys.argv[1:]))"
    (arena.folder / "show_flags.py").write_text(program)
    command = [sys.executable, "-m", "fasttrain.launch.torchrun", "--standalone", "--local-addr=127.0.0.1"]
    job = arena.start(
        [*command, "--nproc-per-node=1", "--module", "--", "show_flags", *flags],
        {"PYTHONPATH": f"{arena.folder}:{ROOT}"},
    )
    assert job.wait() == [0], job.output
    assert json.dumps(flags) in job.output


@pytest.mark.heavy
@pytest.mark.parametrize("fault", ["", "crash:0:3", "kill:1:3"])
def test_secrets_are_in_no_output(arena: Arena, arguments: list[str], fault: str) -> None:
    """Row 26."""
    canary = "canary-5f2a9c"
    secrets = {"WANDB_API_KEY": canary, "SOME_TOKEN": canary, "AWS_SECRET_ACCESS_KEY": canary}
    job = launch(arena, *arguments, fault=fault, RESTARTS="0", **secrets)
    assert (job.wait() == [0]) == (not fault)
    job = launch(arena, "--dry-run", *arguments, **secrets)
    assert job.wait() == [0]
    files = [path for path in arena.folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if canary.encode() in path.read_bytes()]


@pytest.mark.heavy
def test_the_demo_goes_on_after_sigterm(arena: Arena, tmp_path: Path) -> None:
    """The README's first command, shortened: interrupted in its second epoch, and started again."""
    short = ["demo", "--run.epochs", "3", "--evaluation.subnets", "2", "--run.folder", str(tmp_path)]
    short += ["--run.log-every", "1", "--data.train", str(tmp_path / "digits" / "train")]
    short += ["--data.val", str(tmp_path / "digits" / "test")]
    settings = {"PYTHON": sys.executable, "PROCESSES": "1"}
    command = ["bash", LAUNCH, *short]
    job = arena.start([*command, "--run.name", "reference"], settings, limit=600)
    assert job.wait() == [0], job.output
    job = arena.start([*command, "--run.name", "run"], settings, limit=600)
    wait_for_step(job, tmp_path / "run", 30)
    job.signal(signal.SIGTERM)
    assert job.wait() == [75], job.output
    job = arena.start([*command, "--run.name", "run"], settings, limit=600)
    assert job.wait() == [0], job.output
    assert_same(tmp_path / "run", tmp_path / "reference")
