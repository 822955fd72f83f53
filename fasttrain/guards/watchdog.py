"""A thread that ends its process if the process falls silent, after printing where each thread stands."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import DistributedError
from ..launch.status import tell_exit

PATIENCE = 10
"""Times the step timeout that saving and one batch of an evaluation may take."""


class Watchdog:
    """Ends the process with exit status 7 after `limit` seconds without a beat.

    Seconds are those in which this thread ran: a process that was stopped and goes on is not at fault.
    """

    def __init__(self, start: float, step: float) -> None:
        """Start to watch.

        Args:
            start: seconds before the first beat.
            step: seconds between beats.
        """
        self.step, self.limit = step, start
        self._silent = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """A step was done."""
        self.limit, self._silent = self.step, 0.0

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within, a beat may take `PATIENCE` times as long, and at least as long as the start."""
        before = self.limit
        self.limit, self._silent = max(before, PATIENCE * self.step), 0.0
        try:
            yield
        finally:
            self.limit, self._silent = before, 0.0

    def rest(self) -> None:
        """Silence is counted from here on anew."""
        self._silent = 0.0

    def stop(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        tick = min(1.0, self.limit / 10, self.step / 10)
        while not self._end.wait(tick):
            self._silent += tick
            if self._silent > self.limit:
                self._bark()

    def _bark(self) -> None:
        error = DistributedError(
            f"no step was done for {self.limit:g} s; where each thread stood is printed above. Another "
            "process may be stuck or gone; --run.step-timeout and --run.start-timeout set the time"
        )
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
        tell_exit(error.exit_status, str(error))
        os.write(2, f"fasttrain: rank {os.environ.get('RANK', 0)}: {error}\n".encode())
        os._exit(error.exit_status)
