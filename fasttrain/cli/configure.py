"""A run's configuration from the command line: a recipe and what overrides it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import tyro

from ..config import Config
from ..effects import refuse_ignored
from ..errors import ConfigError
from ..recipes import RECIPES, recipe


def configure(command: str, rest: list[str]) -> Config:
    """The recipe with what overrides it.

    Raises:
        ConfigError: no recipe, a value that is not allowed, or one that has no effect.
    """
    start, config = overridden(command, rest)
    refuse_ignored([(start, config)])
    return config


def overridden(command: str, rest: list[str]) -> tuple[Config, Config]:
    """The recipe, and the same with what overrides it, whether that has an effect or not.

    Raises:
        ConfigError: no recipe, or a value that is not allowed.
    """
    if not rest or rest[0].startswith("-"):
        raise ConfigError(f"{command} needs a recipe; allowed: {', '.join(RECIPES)}, or a run's config.json")
    overrides = [word for entry in rest[1:] for word in _RESUME.get(entry, (entry,))]
    start = recipe(rest[0])
    config = tyro.cli(
        Config,
        prog=f"fasttrain {command} {rest[0]}",
        description=f"Recipe {rest[0]}: every field and its value there.",
        default=start,
        args=list(_spelled_out(overrides)),
    )
    return start, config


def _spelled_out(arguments: Iterable[str]) -> Iterator[str]:
    """The arguments with ranges of sides written out: --method.sizes 64:66 is 64 65 66, 64:80:8 is 64 72 80.

    Raises:
        ConfigError: a range of none, or of sides that no image has.
    """
    option = ""
    for argument in arguments:
        option = argument if argument.startswith("--") else option
        found = re.fullmatch(r"(\d{1,9}):(\d{1,9})(?::(\d{1,9}))?", argument)
        if found is None or option != "--method.sizes":
            yield argument
            continue
        low, high, step = (int(number or 1) for number in found.groups())
        if not 1 <= low <= high <= 4096 or step < 1:
            raise ConfigError(f"--method.sizes is {argument}; allowed: LOW:HIGH or LOW:HIGH:STEP, up to 4096")
        yield from map(str, range(low, high + 1, step))


_RESUME = {"--resume": ("--run.resume", "auto")}
"""An older name of what is the default now."""
