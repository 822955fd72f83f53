"""Two nodes as two network namespaces, each with a launch.sh of its own: they train as one node does."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.harness import ROOT, Arena, Job, assert_same, faulty, metrics
from tests.faults.machines import ADDRESSES, NAMES, Machines, known_names, machines, unavailable

pytestmark = [pytest.mark.faults, pytest.mark.heavy]

LIMIT = 400.0


@pytest.fixture
def reference(whole: Callable[[int], Path]) -> Path:
    """The uninterrupted run of one node with two processes."""
    return whole(2)


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machines]:
    reason = unavailable()
    if reason:
        pytest.skip(reason)
    with machines(tmp_path, uuid.uuid4().hex[:6], known_names(getattr(request, "param", "none"))) as both:
        yield both


def start(
    arena: Arena, pair: Machines, rank: int, arguments: Sequence[str], master: str, **settings: str
) -> Job:
    """launch.sh on one of the two nodes, with one process."""
    common = {**faulty(settings.pop("fault", "")), "PYTHON": sys.executable, "PROCESSES": "1", "NNODES": "2"}
    place = {"NODE_RANK": str(rank), "MASTER_ADDR": master, "GLOO_SOCKET_IFNAME": ""}
    command = [*pair.enter(rank), "bash", str(ROOT / "launch.sh"), *arguments]
    return arena.start(command, {**common, **place, **settings}, limit=LIMIT)


@pytest.mark.parametrize("pair", ["none", "127.0.1.1", "right"], indirect=True)
def test_two_nodes_train_as_one(
    arena: Arena, pair: Machines, arguments: list[str], tmp_path: Path, reference: Path
) -> None:
    """Row 16: whatever a node's own name means to it."""
    master = ADDRESSES[0] if "node-a" not in pair.hosts[0] else NAMES[0]
    jobs = [start(arena, pair, rank, arguments, master) for rank in range(2)]
    assert [job.wait() for job in jobs] == [[0], [0]], "\n".join(job.output for job in jobs)
    assert_same(tmp_path / "run", reference)


def test_two_nodes_under_slurm(
    arena: Arena, pair: Machines, arguments: list[str], tmp_path: Path, reference: Path
) -> None:
    """Row 16 by stand-ins for srun and scontrol."""
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "srun").write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/faults/srun.py "$@"\n')
    (commands / "scontrol").write_text(f'#!/bin/sh\nprintf "{ADDRESSES[0]}\\n{ADDRESSES[1]}\\n"\n')
    for rank in range(2):
        (commands / f"enter{rank}").write_text(f'#!/bin/sh\nexec {shlex.join(pair.enter(rank))} "$@"\n')
    for file in commands.iterdir():
        file.chmod(0o755)
    job = arena.start(
        ["bash", str(ROOT / "launch.sh"), *arguments],
        {
            **faulty(),
            **{f"ON_NODE_{rank}": str(commands / f"enter{rank}") for rank in range(2)},
            **{"PYTHON": sys.executable, "PROCESSES": "1", "PATH": f"{commands}:{os.environ['PATH']}"},
            **{"SLURM_JOB_ID": "4711", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node-[a-b]"},
            "GLOO_SOCKET_IFNAME": "",
        },
        limit=LIMIT,
    )
    assert job.wait() == [0], job.output
    assert_same(tmp_path / "run", reference)


def test_a_crash_on_one_node_restarts_both(
    arena: Arena, pair: Machines, arguments: list[str], tmp_path: Path, reference: Path
) -> None:
    """Row 2 on two nodes: the process of node 1 is killed in the second epoch."""
    once = {"fault": "kill:1:7", "FAULT_ONCE": str(tmp_path / "once")}
    jobs = [start(arena, pair, rank, arguments, ADDRESSES[0], **once) for rank in range(2)]
    assert [job.wait() for job in jobs] == [[0], [0]], "\n".join(job.output for job in jobs)
    assert all("restart 1 of 3" in job.output for job in jobs)
    assert_same(tmp_path / "run", reference)


def test_a_signal_to_one_node_saves_on_both(
    arena: Arena, pair: Machines, arguments: list[str], tmp_path: Path, reference: Path
) -> None:
    """Row 10 on two nodes: node 1 alone is told to end."""
    jobs = [start(arena, pair, rank, arguments, ADDRESSES[0], fault="pause:*:3") for rank in range(2)]
    wait_for_step(jobs, tmp_path / "run", 2)
    launcher = next(
        process
        for process in arena.processes()
        if command(process)[1:2] == [str(ROOT / "launch.sh").encode()]
        and b"NODE_RANK=1" in Path(f"/proc/{process}/environ").read_bytes()
    )
    os.kill(launcher, signal.SIGTERM)
    assert [job.wait() for job in jobs] == [[75], [75]], "\n".join(job.output for job in jobs)
    jobs = [start(arena, pair, rank, arguments, ADDRESSES[0]) for rank in range(2)]
    assert [job.wait() for job in jobs] == [[0], [0]], "\n".join(job.output for job in jobs)
    assert_same(tmp_path / "run", reference)


def test_a_partition_ends_both_and_the_run_goes_on(
    arena: Arena, pair: Machines, arguments: list[str], tmp_path: Path, reference: Path
) -> None:
    """Row 15: the link goes down in the second epoch; both leave within the timeout and 10 seconds. Only the
    launchers wait for each other a little longer.
    """
    timeout = 15.0
    settings = {"RESTARTS": "0", "JOIN_TIMEOUT": "30", "fault": "pause:*:7"}
    watched = [*arguments, "--run.step-timeout", f"{timeout:g}"]
    jobs = [start(arena, pair, rank, watched, ADDRESSES[0], **settings) for rank in range(2)]
    wait_for_step(jobs, tmp_path / "run", 6)
    pair.link("down")
    began = time.monotonic()
    while any(b"fasttrain.launch.torchrun" in command(process) for process in arena.processes()):
        assert time.monotonic() - began < PAUSE + timeout + 10, "\n".join(job.output for job in jobs)
        time.sleep(0.2)
    assert [job.wait() for job in jobs] == [[7], [7]], "\n".join(job.output for job in jobs)
    pair.link("up")
    jobs = [start(arena, pair, rank, arguments, ADDRESSES[0]) for rank in range(2)]
    assert [job.wait() for job in jobs] == [[0], [0]], "\n".join(job.output for job in jobs)
    assert_same(tmp_path / "run", reference)


def command(process: int) -> list[bytes]:
    """What a process runs; nothing if it has gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


PAUSE = 8.0
"""Seconds of the fault `pause`."""


def _last_step(run: Path) -> int:
    """The last global step that a run has reported."""
    path = run / "metrics.jsonl"
    return max([0, *(line["global_step"] for line in metrics(run))]) if path.exists() else 0


def wait_for_step(jobs: Sequence[Job], run: Path, step: int) -> None:
    """Until a run has logged a step."""
    end = time.monotonic() + LIMIT
    while _last_step(run) < step:
        assert time.monotonic() < end, "\n".join(job.output for job in jobs)
        assert all(job.processes[0].poll() is None for job in jobs), "\n".join(job.output for job in jobs)
        time.sleep(0.1)
