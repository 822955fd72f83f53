"""Errors that end a run with one clear message, and the exit status each maps to."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 200
"""Characters of a value in a message at most."""


def cut(value: str) -> str:
    """A value without its middle where it is long: both ends of a path tell most."""
    half = (LONGEST - 3) // 2
    return value if len(value) <= LONGEST else f"{value[:half]}...{value[-half:]}"


def brief(message: str) -> str:
    """A message whose long words and long quoted values are cut."""
    return _LONG.sub(lambda found: cut(found[0]), message)


def encodable(text: str) -> str:
    """A text in which what is no UTF-8 in a file's name is escaped, so that it can be printed and written."""
    return text.encode(errors="backslashreplace").decode()


def harmless(text: str) -> str:
    """A text in which what would command a terminal is escaped."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # but tab and newline
_LONG = re.compile(rf"""(?<!\w)'[^'\n]{{{LONGEST},}}'|(?<!\w)"[^"\n]{{{LONGEST},}}"|\S{{{LONGEST},}}""")


def instead(name: str, names: Iterable[str], rest: str = "", forms: str = "") -> str:
    """What a message says is to be given instead of a wrong name: those that are near it, and all if these
    are few, none is near, or a few words say them.

    Args:
        name: what was given.
        names: that there are.
        rest: what is allowed besides.
        forms: what is said instead of all, if they are too many.
    """
    from difflib import get_close_matches  # a mistake alone needs it

    names = list(names)
    by_case = {each.lower(): each for each in names}
    near = [by_case[each] for each in get_close_matches(name.lower(), by_case, n=3, cutoff=0.75)]
    all_of_them = f"allowed: {forms or ', '.join([*names, rest] if rest else names)}"
    if not near:
        return all_of_them
    asked = f"did you mean {' or '.join(near)}?"
    return f"{asked} {all_of_them}" if forms or len(all_of_them) <= LONGEST else asked


class RunError(Exception):
    """Ends the run: the message names what was given and what is allowed; no traceback is shown.

    Attributes:
        speaks: whether this process shows the message; None: the first of the run's.
    """

    exit_status = 1
    speaks: bool | None = None

    def __init__(self, message: str = "") -> None:
        """The message, ready to be shown."""
        super().__init__(brief(harmless(encodable(message))))


class ConfigError(RunError, ValueError):
    """A wrong command line, recipe or configuration value."""

    exit_status = 2


class DataError(RunError):
    """Missing, empty or undecodable data."""

    exit_status = 3


class ImageError(DataError):
    """An image that cannot be read or decoded, which the process that takes it meets alone."""

    speaks = True


class CheckpointError(RunError):
    """A checkpoint that is missing, damaged or of another network."""

    exit_status = 4


class NonFiniteError(RunError):
    """A loss that became NaN or infinite."""

    exit_status = 5


class OutOfMemoryError(RunError):
    """The device's memory did not suffice."""

    exit_status = 6


class DistributedError(RunError):
    """A process of the run died or fell silent, or the processes did not find each other."""

    exit_status = 7


class Preempted(RunError):
    """Told to end by SIGTERM or SIGUSR1: saved, and the same command goes on."""

    exit_status = 75


class Interrupted(RunError):
    """Told to end by Ctrl-C: saved likewise."""

    exit_status = 130


INTERRUPTED = Interrupted.exit_status
"""Exit status after Ctrl-C."""

_KINDS: dict[int, type[RunError]] = {
    kind.exit_status: kind
    for kind in (
        *(ConfigError, DataError, CheckpointError, NonFiniteError),
        *(OutOfMemoryError, DistributedError, Preempted, Interrupted),
    )
}


def error_of(status: int, message: str) -> RunError:
    """The error that an exit status stands for, as another process told it."""
    return _KINDS.get(status, RunError)(message)
