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
