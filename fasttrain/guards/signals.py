"""Signals that ask a run to end: SIGTERM, SIGUSR1 and SIGHUP (preemption), SIGINT (Ctrl-C).

A thread reads them from a pipe into which Python's own handler writes at once, so that a second signal ends
the process also while its main thread waits in a collective or in an import. Imports little: it is there
before anything else is.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from types import FrameType

from ..errors import Interrupted, Preempted, RunError
from .leaving import leave

AGAIN = 3.0
"""Seconds within which signals count as one: torchrun, srun and launch.sh each forward theirs."""


class Request(IntEnum):
    """What a process asks of all; the greatest counts."""

    NONE = 0
    SAVE = 1
    PREEMPT = 2
    INTERRUPT = 3


ANSWERS = {
    **dict.fromkeys((signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP), Request.PREEMPT),
    signal.SIGINT: Request.INTERRUPT,
}


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
            leave(ending(self.request, "nothing was saved since the last checkpoint, if there is one"))

    def _listen(self, pipe: socket.socket) -> None:
        while number := pipe.recv(1):
            if number[0] in ANSWERS:
                self._take(number[0])


_active: Signals | None = None
"""Where this process's signals come to."""


@contextmanager
def caught() -> Iterator[Signals]:
    """Within, signals come to `Signals`, the outermost's; outside of the main thread nothing changes."""
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or Signals()
        return
    _active = signals = Signals()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    listener = threading.Thread(target=signals._listen, args=(reader,), name="signals", daemon=True)
    pipe = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, _nothing) for number in _answered()}
    listener.start()
    try:
        yield signals
    finally:
        _active = None
        for number, handler in before.items():
            with suppress(TypeError):  # None: a handler that was not set from Python
                signal.signal(number, handler)
        signal.set_wakeup_fd(pipe)
        writer.close()
        listener.join()
        reader.close()


def _answered() -> list[signal.Signals]:
    """All of `ANSWERS`, but for a hang-up that `nohup` has put out."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in ANSWERS if not (ignored and number == signal.SIGHUP)]


def _nothing(number: int, frame: FrameType | None) -> None:
    """Python's handler: the pipe tells."""
