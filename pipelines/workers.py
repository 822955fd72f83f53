"""Work spread over processes, with results in order and few of them waiting."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from fasttrain.errors import ConfigError, DataError

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 4
"""Tasks per process that are submitted before the first result is taken."""


_LONGEST = 107
"""Bytes of the path of a Unix socket."""
_SOCKET = len("/pymp-12345678/listener-12345678")
"""Bytes of what multiprocessing appends to the folder of temporary files."""


def shorten_sockets() -> None:
    """Have multiprocessing's sockets lie where their paths are short enough, whatever TMPDIR is.

    Raises:
        ConfigError: there is no such place.
    """
    places = [_temporary(), "/tmp", "/var/tmp", "/dev/shm"]
    fitting = [each for each in places if len(os.fsencode(each)) <= _LONGEST - _SOCKET]
    place = next((each for each in fitting if os.access(each, os.W_OK | os.X_OK)), None)
    if place is None:
        raise ConfigError(
            f"TMPDIR is {places[0]}, and {places[1]} cannot be written to; allowed: a folder whose path has "
            f"at most {_LONGEST - _SOCKET} bytes, for the sockets of worker processes"
        )
    if place != places[0]:
        usual, tempfile.tempdir = tempfile.tempdir, place
        multiprocessing.util.get_temp_dir()  # made once, where it is then
        tempfile.tempdir = usual


def _temporary() -> str:
    """The folder of temporary files.

    Raises:
        ConfigError: there is none.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        raise ConfigError(
            f"TMPDIR is {os.environ.get('TMPDIR', '')!r}; allowed: a folder that can be written to"
        ) from None


class Workers:
    """Processes, one per core that this one may use unless told otherwise; a context manager."""

    def __init__(self, preload: str, count: int = 0) -> None:
        """Start them.

        Args:
            preload: the module of the functions that they will run, imported once for all.
            count: how many; 0: one per core.

        Raises:
            ConfigError: there is no place for their sockets or semaphores.
        """
        shorten_sockets()
        self.count = count or len(os.sched_getaffinity(0))
        # Not forked from this process, whose threads and libraries would not survive it.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([preload])
        try:
            self._pool = ProcessPoolExecutor(self.count, context, initializer=_follow_the_parent)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise ConfigError(
                f"/dev/shm cannot be written to ({why}); allowed: one that can, for the semaphores of workers"
            ) from None
        self._cpu: dict[int, float] = {}

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: BaseException | TracebackType | None) -> None:
        """Wait for the tasks under way; drop the others."""
        self._pool.shutdown(cancel_futures=True)

    @property
    def cpu_seconds(self) -> float:
        """Processor time that the processes have taken."""
        return sum(self._cpu.values())

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """The function's results, in the tasks' order; the tasks are taken as they are needed.

        Raises:
            DataError: a process died.
        """
        waiting: deque[Future[Any]] = deque()
        try:
            for task in tasks:
                with _uninterrupted():
                    waiting.append(self._pool.submit(_timed, function, task))
                if len(waiting) > _AHEAD * self.count:
                    yield self._take(waiting.popleft())
            while waiting:
                yield self._take(waiting.popleft())
        except BrokenProcessPool:
            raise DataError("a worker process was killed; the machine may be short of memory") from None

    def _take(self, future: Future[Any]) -> Any:
        process, seconds, result = future.result()
        self._cpu[process] = seconds
        return result


def _timed(function: Callable[[Any], Any], task: Any) -> tuple[int, float, Any]:
    result = function(task)
    return os.getpid(), time.process_time(), result


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold signals to end back: a pool that is interrupted while it starts a process waits for ever.

    The process inherits the mask, so that a terminal's Ctrl-C, which goes to all, does not meet it early.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread alone
        return
    held: list[int] = []
    ends = (signal.SIGINT, signal.SIGTERM)
    handlers = {each: signal.signal(each, lambda number, frame: held.append(number)) for each in ends}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for each, handler in handlers.items():
            signal.signal(each, handler or signal.SIG_DFL)
        for number in held:
            signal.raise_signal(number)


def _follow_the_parent() -> None:
    """Leave interrupts to it, and end when it was killed: the pool's queue would be waited on for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(os.EX_TEMPFAIL)
