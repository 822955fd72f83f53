"""Work spread over processes, with results in order and few of them waiting.

A decoder that a damaged file leads astray can kill its process. Then the work which that one had is done
again, each item in a process of its own, so that the item is known and all others get their results.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
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


class Killed(Exception):
    """A process ended before it had a result."""

    def __init__(self, status: int) -> None:
        """`status`: as `multiprocessing.Process.exitcode`, -N after signal N."""
        how = f"ended with status {status}"
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        super().__init__(how)
        self.by_the_system = status == -signal.SIGKILL
        """Whether nothing in the process itself can have ended it: memory ran out, or somebody killed it."""


def alone(function: Callable[[T], R], task: T, preload: str) -> R:
    """A function's result from a process of its own.

    Args:
        function: of a module that the process can import.
        task: its argument.
        preload: as `Workers`.

    Raises:
        Killed: the process ended without one.
        Exception: what the function raised.
    """
    context = _context(preload)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, task))
    with ours:
        with theirs, uninterrupted():
            process.start()
        try:
            kept, result = ours.recv()
        except EOFError:
            process.join()
            raise Killed(process.exitcode or 0) from None
        finally:
            process.kill()  # it has answered, or nobody wants its answer any more
            process.join()
            process.close()
    if not kept:
        raise result
    return result


def _answer(answer: Connection, function: Callable[[Any], Any], task: Any) -> None:
    _follow_the_parent()
    try:
        result = True, function(task)
    except Exception as error:
        result = False, error
    answer.send(result)


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
        self.count = count or len(os.sched_getaffinity(0))
        self._preload = preload
        self._pool = self._new_pool()
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

    def map(
        self,
        function: Callable[[tuple[T, ...]], Sequence[R]],
        tasks: Iterable[tuple[T, ...]],
        killed: Callable[[T, Killed], R],
    ) -> Iterator[Sequence[R]]:
        """The function's results, in the tasks' order; the tasks are taken as they are needed.

        Args:
            function: gives a result for each item of a task.
            tasks: the items, in groups that a process takes at once.
            killed: called with an item that kills its process; gives the item's result, or raises.

        Raises:
            DataError: a process was killed from outside, as the system does that has no memory left.
        """
        waiting: deque[tuple[tuple[T, ...], Future[Any]]] = deque()
        for task in tasks:
            waiting.append((task, self._submit(function, task)))
            if len(waiting) > _AHEAD * self.count:
                yield self._first(function, waiting, killed)
        while waiting:
            yield self._first(function, waiting, killed)

    def _new_pool(self) -> ProcessPoolExecutor:
        context = _context(self._preload)
        try:
            return ProcessPoolExecutor(self.count, context, initializer=_follow_the_parent)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise ConfigError(
                f"/dev/shm cannot be written to ({why}); allowed: one that can, for the semaphores of workers"
            ) from None

    def _submit(self, function: Callable[[Any], Any], task: Any) -> Future[Any]:
        with uninterrupted():
            try:
                return self._pool.submit(_timed, function, task)
            except BrokenProcessPool:
                self._pool.shutdown()
                self._pool = self._new_pool()
                return self._pool.submit(_timed, function, task)

    def _first(
        self,
        function: Callable[[tuple[T, ...]], Sequence[R]],
        waiting: deque[tuple[tuple[T, ...], Future[Any]]],
        killed: Callable[[T, Killed], R],
    ) -> Sequence[R]:
        """The result of the first task that waits."""
        task, future = waiting.popleft()
        try:
            process, seconds, result = future.result()
        except BrokenProcessPool:
            result = self._apart(function, task, killed)
            for place, (other, future) in enumerate(waiting):
                if future.done() and isinstance(future.exception(), BrokenProcessPool):
                    waiting[place] = other, self._submit(function, other)
            return result
        self._cpu[process] = seconds
        return result

    def _apart(
        self,
        function: Callable[[tuple[T, ...]], Sequence[R]],
        task: tuple[T, ...],
        killed: Callable[[T, Killed], R],
    ) -> Sequence[R]:
        """A task's result from a process of its own, or where that dies, each item's from one of its own."""
        try:
            return alone(function, task, self._preload)
        except Killed as death:
            if death.by_the_system:
                raise DataError("a worker process was killed; the machine may be short of memory") from None
            if len(task) == 1:
                return [killed(task[0], death)]
        return [result for item in task for result in self._apart(function, (item,), killed)]


def _context(preload: str) -> multiprocessing.context.ForkServerContext:
    """Processes that are not forked from this one, whose threads and libraries would not survive it."""
    shorten_sockets()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


def _timed(function: Callable[[Any], Any], task: Any) -> tuple[int, float, Any]:
    result = function(task)
    return os.getpid(), time.process_time(), result


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals to end back: a pool that is interrupted while it starts a process waits for ever,
    for one.

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
