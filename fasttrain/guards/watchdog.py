"""A thread that ends its process if the process falls silent, after printing where each thread stands.

How long silence may be depends on who waits for the process: others of the run give it the limits of the
configuration; a process alone is measured by its own steps, and on a CPU, where a step may take whatever it
takes, silence is told and nothing is ended.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import DistributedError
from .leaving import leave

PATIENCE = 10
"""Times the step timeout that saving and one batch of an evaluation may take, and times its longest step
that a step of a process alone may take."""
KNOWN = 3
"""Steps, without the first, after which a process alone knows how long its steps are."""


class Watchdog:
    """Ends the process with exit status 7 after `limit` seconds without a beat.

    Seconds are those in which this thread ran: a process that was stopped and goes on is not at fault.
    """

    def __init__(self, start: float, step: float) -> None:
        """Watch a process that others may wait for.

        Args:
            start: seconds before the first beat.
            step: seconds between beats.
        """
        self.step, self.limit = step, start
        self._alone_on = ""
        self._beats, self._longest = 0, 0.0
        self._silent, self._computed = 0.0, _computed()
        self._told = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to count."""
        self._thread.start()

    def alone(self, device: str) -> None:
        """No other process waits for this one, whose steps run on a device of this type."""
        self._alone_on = device

    def beat(self) -> None:
        """A step was done."""
        if self._beats:
            self._longest = max(self._longest, self._silent)
        self._beats += 1
        self.limit = self.step
        self.rest()

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within, a beat may take `PATIENCE` times as long, and at least as long as the start."""
        before = self.limit
        self.limit = max(before, PATIENCE * self.step)
        self.rest()
        try:
            yield
        finally:
            self.limit = before
            self.rest()

    def rest(self) -> None:
        """Silence is counted from here on anew."""
        self._silent, self._computed, self._told = 0.0, _computed(), False

    def stop(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()

    def pass_by(self, seconds: float) -> None:
        """So much time has passed: tell of silence that is too long, or end the process."""
        self._silent += seconds
        limit = max(self.limit, PATIENCE * self._longest) if self._alone_on else self.limit
        if self._silent <= limit:
            return
        if self._ends():
            leave(self._error(limit), f"rank {os.environ.get('RANK', 0)}: ")
        elif not self._told:
            self._told = True
            with suppress(OSError):  # a reader of our output that has gone
                os.write(2, f"fasttrain: {self._tell(limit)}; the run goes on\n".encode())

    def _watch(self) -> None:
        tick = min(1.0, self.limit / 10, self.step / 10)
        while not self._end.wait(tick):
            self.pass_by(tick)

    def _ends(self) -> bool:
        return not self._alone_on or (self._alone_on != "cpu" and self._beats > KNOWN)

    def _error(self, limit: float) -> DistributedError:
        cause = "" if self._alone_on else " Another process may be stuck or gone;"
        return DistributedError(
            f"{self._tell(limit)}.{cause} --run.step-timeout and --run.start-timeout set the time"
        )

    def _tell(self, limit: float) -> str:
        """What is to be said, after printing where each thread stands."""
        faulthandler.dump_traceback(2)
        return (
            f"no step was done for {limit:g} s, of which this process's main thread computed "
            f"{max(0.0, _computed() - self._computed):.0f} s; where each thread stood is printed above"
        )


def _computed() -> float:
    """Processor time of the main thread, which tells a process that computes from one that waits."""
    thread = threading.main_thread().ident
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread))  # type: ignore[arg-type]
    except (AttributeError, OSError):  # not on every system
        return 0.0
