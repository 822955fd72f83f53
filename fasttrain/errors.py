"""Errors that end a run with one clear message, and the exit status each maps to."""

from __future__ import annotations


class RunError(Exception):
    """Ends the run: the message names what was given and what is allowed; no traceback is shown.

    Attributes:
        speaks: whether this process shows the message; None: the first of the run's.
    """

    exit_status = 1
    speaks: bool | None = None


class ConfigError(RunError, ValueError):
    """A wrong command line, recipe or configuration value."""

    exit_status = 2


class DataError(RunError):
    """Missing, empty or undecodable data."""

    exit_status = 3


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
