"""Standard output and error whose reader may leave, as `| head` does: no command ends by it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class _Patient:
    """A text stream that goes nowhere once its reader has left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of the stream."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        """As of the stream."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        """Lead what is still to come, and what the stream holds, to the null device."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


@contextmanager
def outlasting_readers() -> Iterator[None]:
    """Commands inside do all that they were asked to, and end as they would, whether their output is read or
    not.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (each and cast(TextIO, _Patient(each)) for each in before)  # None: closed
    try:
        yield
    finally:
        with suppress(OSError):  # of a full disk, which a command that ended well has met before
            print(end="", flush=True)
        sys.stdout, sys.stderr = before
