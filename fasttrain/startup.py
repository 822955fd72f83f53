"""What each command does first: streams that can be written to, paths written out, and what would mislead it.

Imports nothing that takes time or opens files.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .errors import ConfigError


def begin(arguments: Sequence[str]) -> list[str]:
    """Make a process ready; its arguments, with paths written out.

    Raises:
        ConfigError: Python runs without docstrings, which recipes and DALI read.
    """
    open_streams()
    _forget_size()
    if sys.flags.optimize > 1:
        raise ConfigError(
            f"Python runs with optimization {sys.flags.optimize} (-OO or PYTHONOPTIMIZE), which drops the "
            "docstrings that recipes and DALI read; allowed: 0 or 1"
        )
    return [expanded(word) for word in arguments]


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


@contextmanager
def importing() -> Iterator[None]:
    """Within, torch and what builds on it are imported, the first time without garbage collections.

    These find next to nothing among a million objects that stay. Nor are the objects looked at in the middle
    of a training step; at the end they are, since libraries complain of what is left.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        gc.enable()


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def _forget_size() -> None:
    """Ignore a terminal's size of nothing, as some containers set it: tables would have no room."""
    for name in ("COLUMNS", "LINES"):
        if os.environ.get(name, "").strip().strip("0") == "":
            os.environ.pop(name, None)


def expanded(word: str) -> str:
    """A path, or an option with one, whose leading `~` or `~user` is written out; any other word as it is.

    A shell leaves it in quotes, and bash behind an option's `=`.
    """
    option, path = re.fullmatch(r"(--?[\w.-]+=)?(.*)", word, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    return option + os.path.expanduser(path)
