"""`fasttrain recipes`, `show`, `doctor`: what there is."""

from __future__ import annotations

import json
import sys

from rich.console import Console

from ..config import to_dict
from ..errors import ConfigError
from ..recipes import RECIPES, describe, sources
from ..startup import importing
from .configure import configure


def recipes(rest: list[str]) -> None:
    expect_nothing("recipes", rest)
    width = max(map(len, RECIPES))
    for name in RECIPES:
        print(f"{name:{width}}  {describe(name)}")


def show(rest: list[str]) -> None:
    config = configure("show", rest)
    if sources(config.recipe):
        print(sources(config.recipe), file=sys.stderr)  # stdout is JSON alone
    print(json.dumps(to_dict(config), indent=2))


def doctor(rest: list[str]) -> None:
    expect_nothing("doctor", rest)
    with importing():
        from ..doctor import report

    console = Console(soft_wrap=True, highlight=False)
    for subject, finding in report():
        console.print(f"{subject:12} {finding}", markup=False)


def expect_nothing(command: str, rest: list[str]) -> None:
    if rest:
        raise ConfigError(f"{command} takes no arguments, got {' '.join(rest)}")
