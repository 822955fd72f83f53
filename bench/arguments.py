"""Command-line arguments of the benchmarks."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fasttrain.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Mistakes raise `ConfigError`, with the command's name."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise ConfigError(f"{self.prog}: {message}")


def check_least(options: argparse.Namespace, **least: int) -> None:
    """Refuse options below what is allowed, each named by its field.

    Raises:
        ConfigError: naming the flag, what was given and what is allowed.
    """
    for name, bound in least.items():
        if getattr(options, name) < bound:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is {getattr(options, name)}; allowed: at least {bound}")
