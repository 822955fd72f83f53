"""Errors that end a run with one clear message, and the exit status each maps to."""

from __future__ import annotations


class RunError(Exception):
    """Ends the run: the message names what was given and what is allowed; no traceback is shown."""

    exit_status = 1
    everywhere = True
    """Whether all processes of a run meet it, so that one of them tells it for all."""


class ConfigError(RunError, ValueError):
    """A wrong command line, recipe or configuration value."""

    exit_status = 2


class DataError(RunError):
    """Missing, empty or undecodable data."""

    exit_status = 3


class ImageError(DataError):
    """An image that cannot be read or decoded, which the process that takes it meets alone."""

    everywhere = False


class CheckpointError(RunError):
    """A checkpoint that is missing, damaged or of another network."""

    exit_status = 4


class NonFiniteError(RunError):
    """A loss that became NaN or infinite."""

    exit_status = 5


class OutOfMemoryError(RunError):
    """The device's memory did not suffice."""

    exit_status = 6


INTERRUPTED = 130
"""Exit status after Ctrl-C."""
