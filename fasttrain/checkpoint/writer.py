"""Writes in the background, one thing at a time, while training goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from ..errors import CheckpointError


class Writer:
    """A thread of lowest priority for each piece of work, so that it takes what a step leaves idle."""

    def __init__(self) -> None:
        """Idle."""
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is being written."""
        return self._thread is None or not self._thread.is_alive()

    def submit(self, work: Callable[[], None]) -> None:
        """Begin `work`; what is under way is finished first."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()

    def failure(self) -> Exception | None:
        """Why the last work failed, once; None if it did not, or is under way."""
        if not self.idle:
            return None
        failure, self._failure = self._failure, None
        return failure

    def _run(self, work: Callable[[], None]) -> None:
        with suppress(OSError, AttributeError):  # Linux alone has priorities of threads
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            work()
        except CheckpointError as failure:
            self._failure = failure
        except Exception as failure:
            self._failure = CheckpointError(
                f"cannot write the checkpoint: {type(failure).__name__}: {failure}"
            )
