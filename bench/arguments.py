"""Command-line arguments of the benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fasttrain.arguments import Parser
from fasttrain.errors import ConfigError, instead

_MOST = {
    "crop": 4096,
    "threads": 1024,
    "seeds": 1000,
    "jobs": 1024,
    "seed": 2**62,
}
"""Largest value of an option; of the others a billion."""


def check_least(options: argparse.Namespace, **least: int) -> None:
    """Refuse options below what is allowed, or above `_MOST`, each named by its field.

    Raises:
        ConfigError: naming the flag, what was given and what is allowed.
    """
    for name, bound in least.items():
        value, most = getattr(options, name), _MOST.get(name, 1_000_000_000)
        if not bound <= value <= most:
            allowed = f"at least {bound}" if value < bound else f"at most {most}"
            raise ConfigError(f"{_flag(name)} is {value}; allowed: {allowed}")


def chosen(flag: str, text: str, allowed: Sequence[str]) -> list[str]:
    """The names that an option lists with commas between; all that are allowed where it is empty.

    Raises:
        ConfigError: one that is not allowed.
    """
    names = text.split(",") if text else list(allowed)
    for name in names:
        if name not in allowed:
            raise ConfigError(f"{flag} holds {name!r}; {instead(name, allowed)}")
    return names


def check_minutes(options: argparse.Namespace) -> None:
    """Refuse minutes that are none.

    Raises:
        ConfigError: not above 0.
    """
    if not options.minutes > 0:  # NaN compares false
        raise ConfigError(f"--minutes is {options.minutes:g}; allowed: above 0")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


__all__ = ["Parser", "check_least", "check_minutes", "chosen"]
