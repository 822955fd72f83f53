"""What a test leaves behind is found and named, and neither a crash nor a hang keeps the run from its end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn

from tests.leaks import beyond_bounds, held, left_since

ROOT = Path(__file__).parents[1]


@contextmanager
def a_thread() -> Iterator[None]:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="planted")
    thread.start()
    yield
    end.set()
    thread.join()


@contextmanager
def a_pipeline() -> Iterator[None]:
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        pipeline.set_outputs(fn.external_source(lambda: [np.zeros(1, np.uint8)]))
    pipeline.run()
    yield


@contextmanager
def a_process() -> Iterator[None]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")  # and its answer: it has begun, under its own name
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        yield


@contextmanager
def a_zombie() -> Iterator[None]:
    with subprocess.Popen(["sleep", "60"]) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield


@contextmanager
def a_file() -> Iterator[None]:
    with open(__file__):
        yield


@contextmanager
def a_temporary_folder() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="planted"):
        yield


@pytest.mark.parametrize(
    ("leak", "words"),
    [
        (a_thread, r"threads: planted \(\d+\)"),
        (a_pipeline, r"threads: \[DALI\].*"),
        (a_process, r"processes: \d+ cat "),
        (a_zombie, r"processes: \d+ that has ended and was not waited for"),
        (a_file, rf"files: \d+ {re.escape(__file__)}"),
        (a_temporary_folder, r"temporary: planted\w+"),
    ],
)
def test_what_is_left_is_named(leak: object, words: str) -> None:
    before = held()
    with leak():  # type: ignore[operator]
        left = left_since(before, patience=0)
    assert left
    assert [each for each in left if not re.fullmatch(words, each)] == []
    assert left_since(before) == []


def test_growth_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert beyond_bounds() == []
    monkeypatch.setattr("tests.leaks.MOST_MEMORY", 1000)
    monkeypatch.setattr("tests.leaks.MOST_THREADS", 0)
    memory, threads = beyond_bounds()
    assert re.fullmatch(r"bytes: \d{8,}, allowed: 1000", memory)
    assert re.fullmatch(r"threads: \d+, allowed: 0", threads)


PLANTED = """
import os, time
from threading import Thread
import pytest

def test_before(): pass

def test_planted(): {planted}

def test_after(): pass
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ("os.abort()", "worker 'gw.' crashed while running '.*::test_planted'"),
        ("exec('while True: pass')", "worker 'gw.' crashed while running '.*::test_planted'"),
        (
            "Thread(target=time.sleep, args=(99,), daemon=True, name='planted').start()",
            r"test_planted leaves behind: \['threads: planted \(\d+\)'\]",
        ),
    ],
    ids=["abort", "loop", "leak"],
)
def test_a_fault_ends_the_run_and_is_named(planted: str, words: str, tmp_path: Path) -> None:
    """By the options of `make test`, but for a shorter limit of time."""
    (tmp_path / "test_planted.py").write_text(PLANTED.format(planted=planted))
    fixtures = "_nothing_is_left, _own_temporary_folder"
    (tmp_path / "conftest.py").write_text(f"from tests.conftest import {fixtures}\n")
    made = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True)
    options = re.search(r"-m pytest (.*)", made.stdout)
    assert options
    here = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(tmp_path))
    limit = ("-o", "faulthandler_timeout=20")
    command = [sys.executable, "-m", "pytest", *options[1].split(), *limit, *here]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert re.search(words, result.stdout)
