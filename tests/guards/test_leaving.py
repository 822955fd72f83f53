"""A process that leaves at once tells why, wherever its main thread is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fasttrain.errors import DistributedError
from fasttrain.guards.leaving import leave
from tests.faults.harness import ROOT

LEAVES = """
import threading
from fasttrain.errors import DistributedError
from fasttrain.guards.leaving import leave

threading.Thread(target=leave, args=(DistributedError("gone: é"), "rank 1: ")).start()
threading.Event().wait()
"""


def end(folder: Path, code: str) -> tuple[int, str]:
    """Exit status of a process, and what it printed."""
    told = {**os.environ, "FASTTRAIN_STATUS": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=told, capture_output=True, text=True, timeout=120, check=False)
    return result.returncode, result.stderr


def test_from_a_thread(tmp_path: Path) -> None:
    assert end(tmp_path, LEAVES) == (7, "fasttrain: rank 1: gone: é\n")
    assert (tmp_path / "exit").read_text().startswith("7\n")


def test_without_a_stream_to_tell_it_ends_all_the_same(tmp_path: Path) -> None:
    assert end(tmp_path, f"import os; os.close(2)\n{LEAVES}")[0] == 7


def test_in_a_tests_own_process_the_test_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The fixture of all tests; here its end is looked at before it is."""
    monkeypatch.delenv("FASTTRAIN_STATUS", raising=False)
    asked: list[int] = []
    tells = os._exit
    monkeypatch.setattr(os, "_exit", lambda status: asked.append(status))
    thread = threading.Thread(target=leave, args=(DistributedError("gone"),))
    thread.start()
    thread.join()
    assert asked == [7]
    assert capfd.readouterr().err == "fasttrain: gone\n"
    assert tells.__module__ == "tests.conftest"
