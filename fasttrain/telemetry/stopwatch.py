"""Time within a training loop: of laps, of waiting, and of single steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Seconds since the last lap, and the share of them spent waiting for data."""

    def __init__(self) -> None:
        """Start."""
        self.started = time.perf_counter()
        self.waited = 0.0
        self._before = 0.0, 0.0

    def begin(self) -> None:
        """The time since the last lap does not count, apart from what was carried over."""
        seconds, self.waited = self._before
        self.started, self._before = time.perf_counter() - seconds, (0.0, 0.0)

    def read(self) -> tuple[float, float]:
        """Seconds since the last lap, and of them waiting."""
        return time.perf_counter() - self.started, self.waited

    def carry(self, seconds: float, waited: float) -> None:
        """Seconds of an earlier process that the next `begin` counts in, and of them waiting."""
        self._before = float(seconds), float(waited)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside counts as waiting."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap and the share of them spent waiting; starts the next."""
        moment = time.perf_counter()
        seconds = moment - self.started
        share = self.waited / seconds
        self.started, self.waited = moment, 0.0
        return seconds, share


class StepClock:
    """Durations of single steps, each from the end of the step before to its own.

    On a GPU by events in its queue, read when the device has been waited for anyway; else by the clock.
    """

    def __init__(self, device: torch.device) -> None:
        """Start."""
        self.events = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Forget the steps; the next one begins now."""
        self.marks = [self._mark()]

    def tick(self) -> None:
        """A step ended, or on a GPU was queued."""
        self.marks.append(self._mark())

    def milliseconds(self) -> list[float]:
        """Of each step; on a GPU its queue must have been waited for."""
        return [
            begin.elapsed_time(end) if self.events else 1e3 * (end - begin)
            for begin, end in zip(self.marks, self.marks[1:], strict=False)
        ]

    def _mark(self) -> Any:
        if not self.events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Estimate:
    """Seconds until a run's end, by the pace since its first report.

    Evaluations and saves count, tuning and other costs of the start do not.
    """

    def __init__(self, total: int) -> None:
        """`total`: global steps of the whole run."""
        self.total = total
        self.first: tuple[int, float] | None = None

    def remaining(self, done: int, pace: float) -> float:
        """Seconds left.

        Args:
            done: global steps.
            pace: seconds per step since the last report, which decides at the first.
        """
        moment = time.perf_counter()
        if self.first is None:
            self.first = done, moment
        steps, seconds = done - self.first[0], moment - self.first[1]
        return max(0, self.total - done) * (seconds / steps if steps else pace)
