"""A configuration as the shortest `fasttrain` command that gives it: the nearest recipe and what differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from .config import Config
from .recipes import RECIPES, recipe


def nearest_recipe(config: Config, among: Iterable[str] = RECIPES) -> str:
    """The recipe that differs from a configuration in the fewest fields; the first of equals."""
    return min(among, key=lambda name: len(_differences(recipe(name), config)))


def command(config: Config, base: str) -> list[str]:
    """The words after `fasttrain train` or `fasttrain show` that give a configuration, from one recipe.

    They reproduce it exactly but for `config.recipe`, which is the recipe's name then.
    """
    words = [base]
    for name, value in _differences(recipe(base), config).items():
        words += _option(name, value)
    return words


def _differences(start: Config, end: Config) -> dict[str, Any]:
    """The fields that differ, as section.field, with their values at the end."""
    found = {}
    for section in fields(Config):
        ours, theirs = getattr(start, section.name), getattr(end, section.name)
        if section.name == "recipe" or ours == theirs:
            continue
        for field in fields(theirs):
            if getattr(ours, field.name) != getattr(theirs, field.name):
                found[f"{section.name}.{field.name}"] = getattr(theirs, field.name)
    return found


def _option(name: str, value: Any) -> list[str]:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        section, _, field = dashed.partition(".")
        return [f"--{section}.{'' if value else 'no-'}{field}"]
    if isinstance(value, tuple):
        return [f"--{dashed}", *(_ranges(value) if name == "method.sizes" else map(str, value))]
    text = str(value)
    if text.startswith("-"):  # apart, it would be read as an option
        return [f"--{dashed}={text}"]
    return [f"--{dashed}", text]


def _ranges(sides: tuple[int, ...]) -> Iterator[str]:
    """The sides, runs of three and more neighbours as FIRST:LAST."""
    start = 0
    for index in range(1, len(sides) + 1):
        if index < len(sides) and sides[index] == sides[index - 1] + 1:
            continue
        run = sides[start:index]
        yield from [f"{run[0]}:{run[-1]}"] if len(run) > 2 else map(str, run)
        start = index
