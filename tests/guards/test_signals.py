"""Signals at each moment of a start: what Python imports next is the clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fasttrain.guards import signals
from fasttrain.guards.signals import Request
from tests.faults.harness import ROOT

AT_AN_IMPORT = """
import os, sys, threading

class Finder:
    def find_spec(self, name, path, target=None):
        if name == os.environ["AT_IMPORT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
            threading.Event().wait()

sys.meta_path.insert(0, Finder())
"""
"""A process sends itself a signal at an import, and gets no further."""


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """The folder of the module that makes a process send itself a signal."""
    (tmp_path / "sitecustomize.py").write_text(AT_AN_IMPORT)
    (tmp_path / "status").mkdir()
    return tmp_path


def start(folder: Path, command: list[str], at: str, number: signal.Signals) -> tuple[int, str, str]:
    """Exit status, what the process printed to stderr, and what it told launch.sh."""
    told = {"PYTHONPATH": f"{folder}:{ROOT}", "AT_IMPORT": at, "SIGNAL": str(int(number))}
    told["FASTTRAIN_STATUS"] = str(folder / "status")
    result = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    exit_file = folder / "status" / "exit"
    return result.returncode, result.stderr, exit_file.read_text() if exit_file.exists() else ""


PREEMPTED = "preempted: nothing was saved since the last checkpoint, if there is one"
INTERRUPTED = "interrupted: nothing was saved since the last checkpoint, if there is one"
MODULE = ["-m", "fasttrain"]
SCRIPT = ["-c", "import sys; sys.argv[0] = 'fasttrain'; from fasttrain.__main__ import main; main()"]
"""What the command that pip installs does."""


@pytest.mark.parametrize(
    ("command", "at", "number", "status", "message"),
    [
        *(
            ([*MODULE, "train", "demo"], at, signal.SIGTERM, 75, PREEMPTED)
            for at in ("fasttrain.cli", "tyro", "fasttrain.recipes", "torch")
        ),
        ([*MODULE, "train", "demo"], "fasttrain.cli", signal.SIGINT, 130, INTERRUPTED),
        ([*MODULE, "train", "demo"], "tyro", signal.SIGUSR1, 75, PREEMPTED),
        ([*MODULE, "train", "demo"], "torch", signal.SIGHUP, 75, PREEMPTED),
        ([*MODULE, "nips22", "--fast"], "fasttrain.compat.nips22", signal.SIGTERM, 75, PREEMPTED),
        ([*SCRIPT, "train", "demo"], "fasttrain.cli", signal.SIGTERM, 75, PREEMPTED),
        ([*SCRIPT, "nips22"], "fasttrain.cli", signal.SIGINT, 130, INTERRUPTED),
    ],
)
def test_training_answers_from_its_first_moment(
    started: Path, command: list[str], at: str, number: signal.Signals, status: int, message: str
) -> None:
    assert start(started, command, at, number) == (
        status,
        f"fasttrain: {message}\n",
        f"{status}\n{message}\n",
    )


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_before_that_a_process_ends_as_any_program(started: Path, command: str) -> None:
    """143 in a shell, which launch.sh takes for 75; so does a command that has nothing to save, later too."""
    at = "fasttrain.cli" if command == "evaluate" else "fasttrain"
    assert start(started, [*MODULE, command], at, signal.SIGTERM) == (-signal.SIGTERM, "", "")


@pytest.mark.parametrize("at", ["fasttrain.cli", "tyro"])
def test_ctrl_c_in_the_imports_of_another_command_is_one_line(started: Path, at: str) -> None:
    assert start(started, [*MODULE, "runs"], at, signal.SIGINT)[:2] == (130, "fasttrain: interrupted\n")


def test_torchrun_ends_without_a_traceback_while_torch_is_imported(started: Path) -> None:
    command = ["-m", "fasttrain.launch.torchrun"]
    assert start(started, command, "torch", signal.SIGINT) == (-signal.SIGINT, "", "")


def test_a_hang_up_that_nohup_has_put_out_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.caught():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_outermost_takes_signals_and_all_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    came = threading.Event()

    monkeypatch.setattr(signals, "leave", lambda error: came.set())
    before = [signal.getsignal(number) for number in signals.ANSWERS]
    threads = threading.active_count()
    with signals.caught() as outer:
        with signals.caught() as inner:
            assert inner is outer
        signal.raise_signal(signal.SIGHUP)
        assert came.wait(60)
        assert outer.request == Request.PREEMPT
    assert [signal.getsignal(number) for number in signals.ANSWERS] == before
    assert threading.active_count() == threads
    with signals.caught() as again:
        assert again is not outer
