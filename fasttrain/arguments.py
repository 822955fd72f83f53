"""A parser of options whose mistakes end a command as all others do."""

from __future__ import annotations

import argparse
from typing import NoReturn

from .errors import ConfigError, instead

_UNKNOWN = "unrecognized arguments: "
"""How argparse begins its message."""


class Parser(argparse.ArgumentParser):
    """Mistakes raise `ConfigError`, with the command's name; of an unknown option those near it are told."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        if message.startswith(_UNKNOWN):
            option = message.removeprefix(_UNKNOWN).partition(" ")[0].partition("=")[0]
            message += f"; {instead(option, self._option_string_actions, forms='what --help lists')}"
        raise ConfigError(f"{self.prog}: {message}")
