"""A process's place among all of a run, as torchrun tells it by environment variables."""

from __future__ import annotations

import os

from ..errors import ConfigError


def number(name: str, default: int, low: int, high: int) -> int:
    """The whole number that a variable holds; `default` where it is not set.

    Raises:
        ConfigError: it holds something else, or nothing: it is not torchrun's, but left over.
    """
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise not_ours(f"the environment's {name} is {text!r}; allowed: {low} to {high}")
    return int(text)


MOST = 2**20
"""Processes of a run at most."""


def world() -> int:
    """How many processes the run has."""
    return number("WORLD_SIZE", 1, 1, MOST)


def rank() -> int:
    """Which of all processes this one is."""
    return number("RANK", 0, 0, world() - 1)


def local_rank() -> int:
    """Which of the processes on this machine it is."""
    return number("LOCAL_RANK", 0, 0, world() - 1)


def local_world() -> int:
    """How many of the processes this machine has."""
    return number("LOCAL_WORLD_SIZE", 1, 1, MOST)


def is_first() -> bool:
    """Whether it speaks for all; also where the variables are wrong, of which it has to tell."""
    text = os.environ.get("RANK", "0")
    return not (text.isascii() and text.isdigit() and int(text[:10]) > 0)


def not_ours(what: str) -> ConfigError:
    """The error for variables that torchrun has not set."""
    error = ConfigError(f"{what}; ./launch.sh and torchrun set what belongs together, a run alone needs none")
    error.speaks = True
    return error
