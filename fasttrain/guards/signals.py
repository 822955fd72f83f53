"""Signals that ask a run to end: SIGTERM and SIGUSR1 (preemption), SIGINT (Ctrl-C).

A thread reads them from a pipe into which Python's own handler writes at once, so that a second signal ends
the process also while its main thread waits in a collective. Imports little: it is there before torch is.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from types import FrameType

from ..errors import Interrupted, Preempted, RunError
from ..launch.status import tell_exit

AGAIN = 3.0
"""Seconds within which signals count as one: torchrun, srun and launch.sh each forward theirs."""


class Request(IntEnum):
    """What a process asks of all; the greatest counts."""

    NONE = 0
    SAVE = 1
    PREEMPT = 2
    INTERRUPT = 3


ANSWERS = {signal.SIGTERM: Request.PREEMPT, signal.SIGUSR1: Request.PREEMPT, signal.SIGINT: Request.INTERRUPT}


def ending(request: Request, saved: str) -> RunError:
    """The error that ends a run as it was asked to."""
    kind, word = (Interrupted, "interrupted") if request == Request.INTERRUPT else (Preempted, "preempted")
    return kind(f"{word}: {saved}")


class Signals:
    """Remembers the first signal; a later one ends the process at once, and so does any before `defer`."""

    def __init__(self) -> None:
        """None has come."""
        self.request = Request.NONE
        self._deferred = False
        self._first = 0.0

    def defer(self) -> None:
        """From now on the first signal waits until the run is saved."""
        self._deferred = True

    def _take(self, number: int) -> None:
        request, moment = ANSWERS[signal.Signals(number)], time.monotonic()
        first = self.request == Request.NONE
        if first:
            self._first = moment
        self.request = max(self.request, request)
        if not self._deferred or (not first and moment - self._first > AGAIN):
            error = ending(self.request, "nothing was saved since the last checkpoint")
            tell_exit(error.exit_status, str(error))
            os.write(2, f"fasttrain: {error}\n".encode())
            os._exit(error.exit_status)

    def _listen(self, pipe: socket.socket) -> None:
        while number := pipe.recv(1):
            if number[0] in ANSWERS:
                self._take(number[0])


@contextmanager
def caught() -> Iterator[Signals]:
    """Within, signals come to `Signals`; outside of the main thread nothing changes."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    listener = threading.Thread(target=signals._listen, args=(reader,), name="signals", daemon=True)
    before = {number: signal.signal(number, _nothing) for number in ANSWERS}
    pipe = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(pipe)
        for number, handler in before.items():
            with suppress(TypeError):  # None: a handler that was not set from Python
                signal.signal(number, handler)
        writer.close()
        listener.join()
        reader.close()


def _nothing(number: int, frame: FrameType | None) -> None:
    """Python's handler: the pipe tells."""
