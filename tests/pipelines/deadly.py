"""What runs in worker processes of tests, and ends some of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def doubled(items: tuple[int, ...]) -> list[int]:
    """Twice each number; 13 and 14 end the process, as a decoder that writes over its memory does."""
    for item in items:
        if item in (13, 14):
            os.kill(os.getpid(), signal.SIGSEGV)
    return [2 * item for item in items]


def named_at_last(items: tuple[Path, ...]) -> list[str]:
    """The files' names; a process that meets a file which exists removes it and is killed from outside."""
    for item in items:
        if item.exists():
            item.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    return [item.name for item in items]


def killed(items: tuple[int, ...]) -> list[int]:
    """Nothing: the system has no memory for it."""
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def failed(items: tuple[int, ...]) -> list[int]:
    """Raises."""
    raise ValueError(f"no {items}")
