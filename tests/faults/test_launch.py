"""launch.sh alone, with a stand-in for Python: restarts, exit statuses, signals, SLURM, what it hands on."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from fasttrain.config import Config
from tests.faults.harness import ROOT, Arena, Job, free_port, rest_heavy

pytestmark = pytest.mark.faults

LAUNCH = ROOT / "launch.sh"


class Launcher:
    """launch.sh in a test's folder, and what it has called."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.folder = arena, arena.folder
        python = self.folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/faults/interpreter.py "$@"\n')
        python.chmod(0o755)

    def start(self, *arguments: str, calls: str = "calls", **environment: str) -> Job:
        common = {"PYTHON": str(self.folder / "python"), "CALLS": str(self.folder / calls), "PROCESSES": "2"}
        return self.arena.start(["bash", str(LAUNCH), *arguments], {**common, **environment}, limit=240)

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit status and output."""
        job = self.start(*(arguments or ("demo",)), **environment)
        return job.wait()[0], job.output

    def calls(self, calls: str = "calls") -> list[dict[str, Any]]:
        """The trainer's and the check's calls, in their order."""
        path = self.folder / calls
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def starts(self, calls: str = "calls") -> list[list[str]]:
        """The arguments of each start of the trainer."""
        return [call["arguments"] for call in self.calls(calls) if "check" not in call["arguments"]]


@pytest.fixture
def launcher(arena: Arena) -> Launcher:
    return Launcher(arena)


def wait_for(job: Job, words: str, count: int = 1) -> None:
    wait_until(job, lambda: job.output.count(words) >= count)


def wait_until(job: Job, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + job.limit
    while not holds():
        assert time.monotonic() < end, job.output
        assert job.processes[0].poll() is None, job.output
        time.sleep(0.01)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_that_is_done(launcher: Launcher, processes: str) -> None:
    status, output = launcher.run("demo", "--run.epochs", "3", STARTS="0:0:0", PROCESSES=processes)
    assert (status, output) == (0, "[0]\n")
    check, start = launcher.calls()
    assert check["arguments"][2:] == [
        "check",
        "demo",
        "--run.epochs",
        "3",
        "--processes",
        processes,
        "--nodes",
        "1",
    ]
    assert start["arguments"][-4:] == ["train", "demo", "--run.epochs", "3"]
    assert ("fasttrain.launch.torchrun" in start["arguments"]) == (processes == "2")
    assert start["GLOO_SOCKET_IFNAME"] == "lo"
    assert not Path(start["FASTTRAIN_STATUS"]).parent.exists()


@pytest.mark.parametrize("status", [2, 3, 4, 5, 6, 75, 130])
def test_no_restart_helps_after_these(launcher: Launcher, status: int) -> None:
    """What torchrun says is 1; the status file tells the cause."""
    assert launcher.run(STARTS=f"0:1:{status}")[0] == status
    assert len(launcher.starts()) == 1


@pytest.mark.parametrize(("told", "status"), [("7", 7), ("1", 1), ("-", 1)])
def test_a_crash_loop_stops_at_the_cap(launcher: Launcher, told: str, status: int) -> None:
    """Row 18: each start gains a step, and then crashes."""
    starts = " ".join(f"{step}:1:{told}" for step in (0, 4, 8, 12, 16, 20))
    got, output = launcher.run(STARTS=starts)
    assert got == status
    assert len(launcher.starts()) == 4
    assert (
        f"exit status {status} of a start at step 12: not started again after 3 restarts (RESTARTS)" in output
    )
    assert launcher.run(STARTS=starts, RESTARTS="0", CALLS=str(launcher.folder / "none"))[0] == status
    assert len(launcher.starts("none")) == 1


def test_a_restart_may_enter_the_folder(launcher: Launcher) -> None:
    """The first start made it; another start of the command must not enter it, a restart has to."""
    assert launcher.run("demo", "--run.resume", "never", STARTS="0:1:- 0:0:0")[0] == 0
    first, second = launcher.starts()
    assert first[-2:] == ["--run.resume", "never"]
    assert second[-4:] == ["--run.resume", "never", "--run.resume", "auto"]


def test_a_start_that_gained_nothing_is_the_last(launcher: Launcher) -> None:
    got, output = launcher.run(STARTS="0:1:- 8:1:7 8:1:1 12:0:0")
    assert got == 1
    assert len(launcher.starts()) == 3
    assert "exit status 1 of a start at step 8, as the one before: nothing gained" in output


def test_starts_that_did_not_come_to_a_step_count_too(launcher: Launcher) -> None:
    assert launcher.run(STARTS="-:1:-")[0] == 1
    assert len(launcher.starts()) == 4


def test_a_crash_and_then_the_end(launcher: Launcher) -> None:
    got, output = launcher.run(STARTS="0:137:- 8:0:0", PROCESSES="1")
    assert got == 0
    assert output == "[0]\nlaunch.sh: exit status 1 of a start at step 0: restart 1 of 3\n"


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [
        (signal.SIGTERM, 75, "SIGTERM"),
        (signal.SIGUSR1, 75, "SIGUSR1"),
        (signal.SIGINT, 130, "SIGINT"),
        (signal.SIGHUP, 75, "SIGTERM"),
    ],
)
@pytest.mark.parametrize("processes", ["1", "2"])
def test_signals_are_passed_on(
    launcher: Launcher, number: signal.Signals, status: int, name: str, processes: str
) -> None:
    """Rows 10 and 11: the trainer saves first; twice changes nothing; no restart."""
    job = launcher.start("demo", STARTS="wait", PROCESSES=processes)
    wait_for(job, "ready")
    job.signal(number)
    time.sleep(0.1)
    job.signal(number)
    assert job.wait() == [status]
    assert f"saved after {name}" in job.output
    assert len(launcher.starts()) == 1


TERMINAL = """
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
seen = b""
while True:
    try:
        data = os.read(terminal, 1000)
    except OSError:
        break
    seen += data
    if b"ready" in seen:
        os.write(terminal, bytes([3]))
        print(seen.decode())
        seen = b""
print(seen.decode(), flush=True)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""Runs a command in a terminal, and types Ctrl-C when it is ready."""


def test_ctrl_c_in_a_terminal_comes_once(launcher: Launcher) -> None:
    environment = {"PYTHON": str(launcher.folder / "python"), "CALLS": str(launcher.folder / "calls")}
    command = [sys.executable, "-c", TERMINAL, "bash", str(LAUNCH), "demo"]
    job = launcher.arena.start(command, {**environment, "STARTS": "wait", "PROCESSES": "2"}, limit=60)
    assert job.wait() == [130], job.output
    assert job.output.count("got SIGINT") == 1


@pytest.mark.parametrize(
    ("moment", "number", "status"),
    [
        *((moment, signal.SIGTERM, 75) for moment in ("find", "facts", "check")),
        ("find", signal.SIGINT, 130),
        ("facts", signal.SIGHUP, 75),
        ("check", signal.SIGUSR1, 75),
    ],
)
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_before_the_start_starts_nothing(
    launcher: Launcher, moment: str, number: signal.Signals, status: int, processes: str
) -> None:
    told = {"SIGNAL_AT": moment, "SIGNAL": str(int(number)), "STARTS": "0:0:0"}
    got, output = launcher.run("demo", PROCESSES=processes, **told)
    assert (got, output) == (status, "[0]\n")
    assert not launcher.starts()


def test_the_check_ends_it(launcher: Launcher) -> None:
    got, output = launcher.run(STARTS="0:0:0", CHECK="3")
    assert (got, output) == (3, "[0]\nfasttrain: what is wrong\n")
    assert not launcher.starts()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("PROCESSES", value) for value in ("0", "x", "-1", "08", "2;ls")),
        *(("RESTARTS", "-1"), ("NNODES", "0"), ("JOIN_TIMEOUT", "soon"), ("REQUEUES", "1.5")),
        *(("MASTER_PORT", "65536"), ("MASTER_PORT", "http")),
        *(("NODE_RANK", "1"), ("SLURM_RESTART_COUNT", "x")),
    ],
)
def test_wrong_settings_are_named(launcher: Launcher, name: str, value: str) -> None:
    got, output = launcher.run(STARTS="0:0:0", **{name: value})
    assert got == 2
    assert f"launch.sh: {name} is '{value}'; allowed: " in output
    assert len(output.splitlines()) == 2
    assert not launcher.calls()


def test_without_fasttrain_it_says_so(arena: Arena) -> None:
    """No .venv beside it, and an interpreter without the package."""
    alone = shutil.copy(LAUNCH, arena.folder)
    bare = {"PYTHON": "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else "python3"}
    job = arena.start(["bash", str(alone), "demo"], {**bare, "PYTHONPATH": ""}, limit=20)
    assert job.wait() == [2]
    assert len(job.output.splitlines()) == 2
    assert "has no fasttrain: run make demo in" in job.output


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(arena: Arena) -> None:
    job = arena.start(["shellcheck", str(LAUNCH)])
    assert job.wait() == [0], job.output


def test_help_and_usage(launcher: Launcher) -> None:
    got, output = launcher.run("--help")
    assert got == 0
    for word in ("NNODES", "MASTER_ADDR", "RESTARTS", "75 preempted"):
        assert word in output
    job = launcher.arena.start(["bash", str(LAUNCH)])
    assert job.wait() == [2]


def test_a_dry_run_prints_and_runs_nothing(launcher: Launcher) -> None:
    got, output = launcher.run("--dry-run", "demo", "--run.name", "a b")
    assert got == 0
    check, start = output.splitlines()[1:]
    assert check.endswith(r"-m fasttrain check demo --run.name a\ b --processes 2 --nodes 1 ")
    assert "--max-restarts=0 --known=1 --module -- fasttrain train demo --run.name" in start
    many = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    got, output = launcher.run("--dry-run", "demo", **many)
    assert got == 0
    assert "fasttrain.launch.rally --nodes 2 --node 1 --master 10.0.0.1 --port 29400" in output
    assert "--nnodes=2 --node-rank=1 --rdzv-id=RENDEZVOUS" in output
    got, output = launcher.run("--dry-run", "demo", SLURM_JOB_ID="7", SLURM_NNODES="2")
    assert output.splitlines()[1].startswith("srun --nodes=2 --ntasks=2 --ntasks-per-node=1 bash ")
    assert not launcher.calls()


def trainer_flags() -> list[str]:
    """Each field of the configuration as a flag with a value, as words."""
    words = []
    for section in dataclasses.fields(Config):
        if section.name != "recipe":
            for field in dataclasses.fields(getattr(Config(), section.name)):
                words += [f"--{section.name}.{field.name.replace('_', '-')}", f"{field.name} $HOME 'x' * \\"]
    return words


def test_each_flag_reaches_the_trainer(launcher: Launcher) -> None:
    """Row 22, up to torchrun; test_launch_runs.py goes through it."""
    flags = [*trainer_flags(), "--log", "a", "--max", "--local", "--", "-m", ""]
    assert launcher.run("demo", *flags, STARTS="0:0:0")[0] == 0
    (start,) = launcher.starts()
    assert start[start.index("--") + 1 :] == ["fasttrain", "train", "demo", *flags]


# Nodes, on one machine


def two_nodes(launcher: Launcher, first: dict[str, str], second: dict[str, str], **both: str) -> list[Job]:
    common = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **both}
    return [
        launcher.start("demo", calls=f"calls{rank}", NODE_RANK=str(rank), **common, **own)
        for rank, own in enumerate((first, second))
    ]


def _shared(start: list[str]) -> list[str]:
    """What torchrun is told alike on all nodes."""
    return [word for word in start if word.startswith(("--rdzv-id", "--master"))]


def test_two_nodes_start_with_one_new_rendezvous_each_time(launcher: Launcher) -> None:
    """Node 1 crashes, which node 0 sees as a lost connection; both start again."""
    jobs = two_nodes(launcher, {"STARTS": "0:1:7 5:0:0"}, {"STARTS": "0:1:- 5:0:0"})
    assert [job.wait()[0] for job in jobs] == [0, 0]
    ids = []
    for first, second in zip(launcher.starts("calls0"), launcher.starts("calls1"), strict=True):
        assert _shared(first) == _shared(second)
        assert "--node-rank=0" in first
        assert "--node-rank=1" in second
        ids.append(_shared(first)[0])
    assert len(set(ids)) == 2
    _, *calls = launcher.calls("calls1")
    assert {call[f"{name}_SOCKET_IFNAME"] for call in calls for name in ("GLOO", "NCCL")} == {"lo"}


@pytest.mark.parametrize(("cause", "status"), [("5", 5), ("6", 6), ("75", 75), ("130", 130)])
def test_nodes_end_with_the_cause_of_one(launcher: Launcher, cause: str, status: int) -> None:
    jobs = two_nodes(launcher, {"STARTS": "0:1:7"}, {"STARTS": f"0:1:{cause}"})
    assert [job.wait()[0] for job in jobs] == [status, status]
    assert f"node 1 ended with exit status {status}" in jobs[0].output
    assert len(launcher.starts("calls0")) == len(launcher.starts("calls1")) == 1


def test_a_signal_to_one_node_is_told_to_the_other(launcher: Launcher) -> None:
    """Node 0's run has ended by it as well, and does not wait in vain for node 1 to say so."""
    jobs = two_nodes(launcher, {"STARTS": "0:1:75"}, {"STARTS": "wait"})
    wait_for(jobs[1], "ready")
    jobs[1].signal(signal.SIGTERM)
    began = time.monotonic()
    assert [job.wait()[0] for job in jobs] == [75, 75]
    assert time.monotonic() - began < 40  # fasttrain.launch.rally.LEAVING is 60
    assert "No such file" not in jobs[1].output
    assert all(len(launcher.starts(f"calls{rank}")) == 1 for rank in (0, 1))


SIGNALS = [
    (signal.SIGTERM, 75),
    (signal.SIGINT, 130),
    (signal.SIGUSR1, 75),
    (signal.SIGHUP, 75),
]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("node", [0, 1])
def test_a_signal_before_the_nodes_have_met_ends_both(
    launcher: Launcher, node: int, number: signal.Signals, status: int
) -> None:
    """Node `node` waits for the other, is told to end, and tells the other when that comes."""
    port = free_port()
    common = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "STARTS": "0:0:0"}
    with socket.create_server(("127.0.0.1", port)) if node else nullcontext() as stand_in:
        first = launcher.start("demo", NODE_RANK=str(node), calls="calls0", **common)
        wait_until(first, lambda: arrived(stand_in, port))
        first.signal(number)
    other = launcher.start("demo", NODE_RANK=str(1 - node), calls="calls1", **common)
    assert [first.wait(), other.wait()] == [[status], [status]], first.output + other.output
    assert f"launch.sh: node {node} ended with exit status {status}" in other.output
    assert "Traceback" not in first.output + other.output
    assert not launcher.starts("calls0")
    assert not launcher.starts("calls1")


def arrived(stand_in: socket.socket | None, port: int) -> bool:
    """Whether the one node is at the meeting: node 1 calls node 0's stand-in, or node 0 can be called."""
    try:
        if stand_in:
            stand_in.settimeout(0.1)
            stand_in.accept()[0].close()
        else:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("node", rest_heavy(1, 0))
def test_a_signal_to_one_of_two_that_wait_for_a_third_ends_both(launcher: Launcher, node: int) -> None:
    port = free_port()
    common = {"NNODES": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "STARTS": "0:0:0"}
    jobs = [launcher.start("demo", calls=f"calls{rank}", NODE_RANK=str(rank), **common) for rank in (0, 1)]
    wait_until(jobs[0], lambda: arrived(None, port))
    wait_until(jobs[1], lambda: rallies(launcher.arena, jobs[1]))
    jobs[node].signal(signal.SIGTERM)
    assert [job.wait() for job in jobs] == [[75], [75]], "".join(job.output for job in jobs)


def test_a_second_signal_does_not_wait_for_the_other_nodes(launcher: Launcher) -> None:
    common = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    job = launcher.start("demo", STARTS="0:0:0", **common)
    wait_until(job, lambda: rallies(launcher.arena, job))
    job.signal(signal.SIGINT)
    wait_until(job, lambda: rallies(launcher.arena, job, "--leaving 10"))
    job.signal(signal.SIGINT)
    assert job.wait() == [130]


def rallies(arena: Arena, job: Job, words: str = "--again") -> bool:
    """Whether a node's process for the meeting has been started, with these words."""
    for process in arena.processes():
        try:
            parent = Path(f"/proc/{process}/status").read_text()
            command = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
        except OSError:  # it has gone
            continue
        if f"PPid:\t{job.processes[0].pid}\n" in parent and "fasttrain.launch.rally" in command:
            return words in command
    return False


def test_a_crash_loop_on_one_node_ends_both_with_its_status(launcher: Launcher) -> None:
    jobs = two_nodes(launcher, {"STARTS": "0:1:7 4:1:7"}, {"STARTS": "0:1:1 4:1:1"}, RESTARTS="1")
    assert [job.wait()[0] for job in jobs] == [1, 1]


@pytest.mark.parametrize("node", [0, 1])
def test_one_node_fails_its_check(launcher: Launcher, node: int) -> None:
    """The message is told once, where it belongs, and both end with its status."""
    settings: list[dict[str, str]] = [{"STARTS": "0:0:0"}, {"STARTS": "0:0:0"}]
    settings[node]["CHECK"] = "3"
    jobs = two_nodes(launcher, *settings)
    assert [job.wait()[0] for job in jobs] == [3, 3]
    assert ["what is wrong" in job.output for job in jobs] == [node == 0, node == 1]
    assert f"launch.sh: node {node} ended with exit status 3" in jobs[1 - node].output


def test_a_late_node_is_waited_for(launcher: Launcher) -> None:
    """Row 17, and node 0 late as well."""
    for late in (0, 1):
        port = str(free_port())
        common = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "STARTS": "0:0:0"}
        early = launcher.start("demo", NODE_RANK=str(1 - late), **common)
        wait_until(early, lambda early=early: rallies(launcher.arena, early))  # type: ignore[misc]
        after = launcher.start("demo", NODE_RANK=str(late), **common)
        assert early.wait() == after.wait() == [0]


@pytest.mark.parametrize("node", [0, 1])
def test_a_missing_node_is_one_line(launcher: Launcher, node: int) -> None:
    port = str(free_port())
    common = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "STARTS": "0:0:0"}
    began = time.monotonic()
    job = launcher.start("demo", NODE_RANK=str(node), JOIN_TIMEOUT="2", **common)
    assert job.wait() == [7]
    assert time.monotonic() - began < 120  # without JOIN_TIMEOUT it would be 300
    lines = job.output.splitlines()[1:]
    assert len(lines) == 1
    assert (f"node 1 of 2 did not come to port {port}" if node == 0 else "no answer from node 0 at") in lines[
        0
    ]


def test_a_name_that_does_not_resolve_is_one_line_in_seconds(launcher: Launcher) -> None:
    """JOIN_TIMEOUT, which is 300 s, is for nodes that are late."""
    common = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "no-such-host.invalid", "STARTS": "0:0:0"}
    got, output = launcher.run("demo", **common)  # ended after a minute if it still waits
    assert got == 7
    assert len(output.splitlines()) == 2
    assert "(no-such-host.invalid does not resolve here: " in output


@pytest.mark.parametrize("address", ["::1", "fe80::1%eth0", "10.0.0.1:29400"])
def test_an_address_that_is_not_ipv4s_is_one_line(launcher: Launcher, address: str) -> None:
    got, output = launcher.run("demo", NNODES="2", NODE_RANK="1", MASTER_ADDR=address, STARTS="0:0:0")
    assert got == 2
    assert f"launch.sh: MASTER_ADDR is '{address}'; allowed: a host name or an IPv4 address" in output
    assert len(output.splitlines()) == 2


@pytest.mark.parametrize("address", ["127.0.0.9", "no-such-host.invalid"])
def test_a_wrong_address_is_one_line(launcher: Launcher, address: str) -> None:
    common = {"NNODES": "2", "NODE_RANK": "1", "MASTER_PORT": str(free_port()), "STARTS": "0:0:0"}
    got, output = launcher.run("demo", MASTER_ADDR=address, JOIN_TIMEOUT="2", **common)
    assert got == 7
    assert len(output.splitlines()) == 2
    assert f"no answer from node 0 at {address}:" in output


def test_a_busy_port_is_one_line(launcher: Launcher) -> None:
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        common = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "STARTS": "0:0:0"}
        got, output = launcher.run("demo", MASTER_PORT=port, **common)
    assert got == 2
    assert f"MASTER_PORT is {port}; allowed: a port that is free" in output
    assert len(output.splitlines()) == 2


def test_nodes_that_were_started_otherwise(launcher: Launcher) -> None:
    common = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "STARTS": "0:0:0"}
    jobs = [
        launcher.start("demo", "--optim.lr", rate, NODE_RANK=rank, **common)
        for rank, rate in (("0", "0.1"), ("1", "0.2"))
    ]
    assert [job.wait()[0] for job in jobs] == [2, 2]
    assert all("node 1 was started with other arguments" in job.output for job in jobs[:1])


def test_nodes_without_a_rank(launcher: Launcher) -> None:
    got, output = launcher.run("demo", NNODES="2", MASTER_ADDR="127.0.0.1")
    assert got == 2
    assert "NNODES is 2; allowed: with NODE_RANK and MASTER_ADDR" in output


# SLURM, by stand-ins for its commands


@pytest.fixture
def slurm(launcher: Launcher) -> dict[str, str]:
    """The environment of a batch script on two nodes, with srun and scontrol before all in PATH.

    srun starts each task as a node of its own on this machine and passes signals on to it, as srun does.
    """
    folder = launcher.folder / "slurm"
    folder.mkdir()
    (folder / "srun").write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/faults/srun.py "$@"\n')
    (folder / "scontrol").write_text(
        f'#!/bin/sh\necho "$@" >> {launcher.folder}/scontrol\n'
        'if [ "$1" = show ]; then printf "127.0.0.1\\nnode-b\\n"; fi\n'
    )
    for file in folder.iterdir():
        file.chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(free_port() - 10000),  # so that launch.sh takes that port
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "MASTER_PORT": str(free_port()),
        "PROCESSES": "1",
    }


def requeues(launcher: Launcher) -> int:
    path = launcher.folder / "scontrol"
    return path.read_text().count("requeue") if path.exists() else 0


def test_slurm_starts_one_task_per_node(launcher: Launcher, slurm: dict[str, str]) -> None:
    got, output = launcher.run("demo", STARTS="0:0:0", **slurm)
    assert got == 0, output
    starts = launcher.starts()
    assert sorted(word for start in starts for word in start if word.startswith("--node-rank")) == [
        "--node-rank=0",
        "--node-rank=1",
    ]
    assert requeues(launcher) == 0


def test_slurm_requeues_a_preempted_job_once(launcher: Launcher, slurm: dict[str, str]) -> None:
    """Row 11."""
    job = launcher.start("demo", STARTS="wait", **slurm)
    wait_for(job, "ready", 2)
    job.signal(signal.SIGUSR1)
    assert job.wait() == [75]
    assert job.output.count("saved after SIGUSR1") == 2
    assert (launcher.folder / "scontrol").read_text().count(f"requeue {slurm['SLURM_JOB_ID']}") == 1


@pytest.mark.parametrize(
    ("starts", "number", "status", "count"),
    [
        ("0:1:-", None, 1, ""),  # a crash
        ("wait", signal.SIGTERM, 75, ""),  # cancelled
        ("wait", signal.SIGUSR1, 75, "50"),  # preempted too often
    ],
)
def test_slurm_does_not_requeue_others(
    launcher: Launcher,
    slurm: dict[str, str],
    starts: str,
    number: signal.Signals | None,
    status: int,
    count: str,
) -> None:
    job = launcher.start("demo", STARTS=starts, RESTARTS="0", SLURM_RESTART_COUNT=count or "0", **slurm)
    if number:
        wait_for(job, "ready", 2)
        job.signal(number)
    assert job.wait() == [status]
    assert requeues(launcher) == 0


def test_slurm_wants_one_task_per_node(launcher: Launcher, slurm: dict[str, str]) -> None:
    got, output = launcher.run("demo", **slurm, SLURM_STEP_ID="0", SLURM_LOCALID="1", STARTS="0:0:0")
    assert got == 2
    assert "allowed: srun --ntasks-per-node=1" in output


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"SLURM_JOB_ID": "x"}, "SLURM_JOB_ID is 'x'"),
        ({"SLURM_JOB_ID": "5"}, "SLURM_NNODES is not"),
        ({"SLURM_JOB_ID": "5", "SLURM_NNODES": "x"}, "SLURM_NNODES is 'x'"),
        ({"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "x"}, "SLURM_STEP_ID is 'x'"),
        ({"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0"}, "SLURM_JOB_NODELIST is not"),
        (
            {"SLURM_JOB_ID": "5", "SLURM_NNODES": "1", "SLURM_RESTART_COUNT": "x"},
            "SLURM_RESTART_COUNT is 'x'",
        ),
        ({"TMPDIR": "/none"}, "TMPDIR is '/none'"),
    ],
)
def test_half_a_job_is_one_line(launcher: Launcher, variables: dict[str, str], told: str) -> None:
    got, output = launcher.run("demo", **variables)
    assert (got, output.count("\n")) == (2, 2), output
    assert told in output
