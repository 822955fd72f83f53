"""Standard streams: what is closed is opened, what cannot be encoded is escaped, and readers may leave."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


def open_streams() -> None:
    """Open the null device where a standard stream is closed, and let what cannot be encoded be escaped.

    The next file to be opened would else get the closed stream's number, and what libraries write to standard
    error would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if _is_closed(number):
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115  (as long as the process)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper) and output.errors in ("strict", "surrogateescape"):
            output.reconfigure(errors="backslashreplace")


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


class _Patient:
    """A text stream that goes nowhere once its reader has left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of the stream."""
        with self._care():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As of the stream."""
        with self._care():
            self._stream.flush()

    @contextmanager
    def _care(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            discard(self._stream)
        except OSError as error:  # a full disk: whose, else nobody would know
            raise OSError(error.errno, error.strerror, self._stream.name) from None


def discard(stream: TextIO) -> None:
    """Lead what is still to come, and what the stream holds, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


@contextmanager
def outlasting_readers() -> Iterator[None]:
    """Commands inside do all that they were asked to, and end as they would, whether their output is read
    (`| head` leaves) or not, or nobody can.
    """
    open_streams()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Patient(each)) for each in before)
    try:
        yield
    finally:
        with suppress(OSError):  # of a full disk, which a command that ended well has met before
            print(end="", flush=True)
        sys.stdout, sys.stderr = before
