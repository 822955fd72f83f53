"""Errors that end a run with one clear message, and the exit status each maps to."""

from __future__ import annotations


class RunError(Exception):
    """Ends the run: the message names what was given and what is allowed; no traceback is shown."""

    exit_status = 1


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
    """Another process was lost, or did not answer in time."""

    exit_status = 7


PREEMPTED = 75
"""Exit status after SIGTERM or SIGUSR1: saved; the same command goes on."""
INTERRUPTED = 130
"""Exit status after Ctrl-C."""
