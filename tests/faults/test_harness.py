"""The harness itself: it sees what is left, and a fault happens where it was asked for."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.harness import Arena, losses

pytestmark = pytest.mark.faults


def test_a_process_that_is_left_is_seen(arena: Arena, tmp_path: Path) -> None:
    """Also one that a process started and left behind."""
    script = "import subprocess, sys; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    assert arena.start([sys.executable, "-c", script]).wait() == [0]
    with pytest.raises(AssertionError, match="processes left"):
        arena.assert_clean(patience=0.3)
    arena.stop()
    (tmp_path / "checkpoint.tmp").touch()
    with pytest.raises(AssertionError):
        arena.assert_clean()
    (tmp_path / "checkpoint.tmp").unlink()


def test_a_time_limit_ends_the_wait(arena: Arena) -> None:
    job = arena.start(["sleep", "60"], limit=0.2)
    with pytest.raises(AssertionError, match="still running"):
        job.wait()
    arena.stop()
    assert isinstance(job.processes[0], subprocess.Popen)
    assert job.wait() == [-signal.SIGKILL]


@pytest.mark.heavy
def test_a_rank_is_killed_at_its_step(arena: Arena, arguments: list[str], tmp_path: Path) -> None:
    """One process of a run that has only one."""
    arguments = [*arguments, "--run.save-steps", "0"]  # else a file may be half written
    assert arena.train(*arguments, world=1, fault="kill:0:3").wait() == [-signal.SIGKILL]
    assert list(losses(tmp_path / "run")) == [2]


def test_the_table_names_tests_that_exist() -> None:
    folder = Path(__file__).parent
    named = re.findall(r"`(test_\w+)[`\[]", (folder / "README.md").read_text())
    written = re.findall(r"def (test_\w+)", "".join(path.read_text() for path in folder.glob("test_*.py")))
    assert len(named) > 40
    assert set(named) <= set(written)
