"""Laps, single steps, and the estimate of a run's end."""

from __future__ import annotations

import time

import pytest
import torch

from fasttrain.telemetry.stopwatch import Estimate, StepClock, Stopwatch
from fasttrain.telemetry.words import duration


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_laps_and_waiting(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.waiting():
        clock.now += 1
    clock.now += 3
    assert watch.lap() == (4, 0.25)
    clock.now += 2
    assert watch.lap() == (2, 0)


def test_steps_are_timed_from_end_to_end(clock: Clock) -> None:
    steps = StepClock(torch.device("cpu"))
    for seconds in (0.5, 0.25):
        clock.now += seconds
        steps.tick()
    assert steps.milliseconds() == [500, 250]
    clock.now += 60  # a report
    steps.restart()
    clock.now += 1
    steps.tick()
    assert steps.milliseconds() == [1000]


def test_the_end_is_estimated_without_the_start(clock: Clock) -> None:
    estimate = Estimate(100)
    assert estimate.remaining(10, 2.0) == 180  # nothing else is known yet
    clock.now += 30  # 20 steps of a second, and an evaluation
    assert estimate.remaining(30, 1.0) == 70 * 1.5
    clock.now += 70
    assert estimate.remaining(100, 1.0) == 0


def test_durations_have_two_units() -> None:
    seconds = (0, 59.6, 200, 7500, 356400)
    assert [duration(each) for each in seconds] == ["0s", "1m00s", "3m20s", "2h05m", "4d03h"]
