"""What each command does first: paths written out, and what would mislead it.

Imports nothing that takes time or opens files.
"""

from __future__ import annotations

import atexit
import gc
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
    _forget_size()
    if sys.flags.optimize > 1:
        raise ConfigError(
            f"Python runs with optimization {sys.flags.optimize} (-OO or PYTHONOPTIMIZE), which drops the "
            "docstrings that recipes and DALI read; allowed: 0 or 1"
        )
    return [expanded(word) for word in arguments]


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
