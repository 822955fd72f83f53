"""`run.profile A:B`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from fasttrain.config import Run
from fasttrain.errors import ConfigError
from fasttrain.telemetry.trace import Tracer

CPU = torch.device("cpu")


def work(tracer: Tracer, steps: int) -> list[str]:
    """Steps that each multiply a matrix of as many rows as steps came before; what the tracer says."""
    words = []
    for step in range(steps):
        words.append(tracer.next_step())
        with torch.profiler.record_function(f"work {step}"):
            torch.ones(step + 1, 2) @ torch.ones(2, 2)
    return words


def traced(path: Path) -> list[str]:
    """The steps in a trace."""
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    return sorted({event["name"] for event in events if str(event.get("name")).startswith("work ")})


def test_the_window_and_nothing_else(tmp_path: Path) -> None:
    tracer = Tracer("2:4", tmp_path / "trace", CPU)
    words = work(tracer, 6)
    path = tmp_path / "trace" / "steps-2-4.json.gz"
    assert words == ["", "", "", "", f"trace of steps 2 to 3: {path}", ""]
    assert traced(path) == ["work 2", "work 3"]
    assert tracer.close() == ""


def test_an_early_end_writes_what_there_is(tmp_path: Path) -> None:
    tracer = Tracer("0:9", tmp_path / "trace", CPU)
    work(tracer, 2)
    assert "steps 0 to 1" in tracer.close()
    assert traced(tmp_path / "trace" / "steps-0-2.json.gz") == ["work 0", "work 1"]


def test_nothing_asked_for_nothing_written(tmp_path: Path) -> None:
    tracer = Tracer("", tmp_path / "trace", CPU)
    work(tracer, 2)
    assert tracer.close() == ""
    assert not (tmp_path / "trace").exists()


def test_steps_that_do_not_come_are_told(tmp_path: Path) -> None:
    for window, told in (("5:9", "begins at step 5 of 2"), ("2:3", "step 2 of 2"), ("1:9", ""), ("", "")):
        tracer = Tracer(window, tmp_path / "trace", CPU)
        work(tracer, 2)
        tracer.close()
        assert told in tracer.missed()
        assert bool(told) == bool(tracer.missed())


def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "trace").touch()
    tracer = Tracer("0:1", tmp_path / "trace", CPU)
    tracer.next_step()
    with pytest.raises(OSError, match="trace"):
        tracer.next_step()
    assert tracer.done == 2
    assert work(tracer, 2) == ["", ""]


@pytest.mark.parametrize("window", ["", "0:1", "10:20"])
def test_windows(window: str) -> None:
    assert Run(profile=window).profile == window


@pytest.mark.parametrize("window", ["5", "5:", ":5", "5:5", "6:5", "-1:5", "a:b", "1:2:3", "1.5:3", "²:³"])
def test_no_windows(window: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.profile is .*; allowed: A:B with 0 <= A < B"):
        Run(profile=window)
