"""Named recipes: functions that return a complete `Config`; published ones never change meaning."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..config import Config, from_dict, with_paths
from ..errors import ConfigError, instead
from . import augsub, cifar, demo, finetune, imagenet, rsb, swin, vit

RECIPES: dict[str, Callable[[], Config]] = {
    **imagenet.RECIPES,
    **vit.RECIPES,
    **rsb.RECIPES,
    **swin.RECIPES,
    **augsub.RECIPES,
    **finetune.RECIPES,
    **cifar.RECIPES,
    **demo.RECIPES,
}


def recipe(name: str) -> Config:
    """The configuration of a named recipe, or of an earlier run (a path ending in .json), to go on with it.

    Raises:
        ConfigError: no such recipe or file, or a file that holds no configuration.
    """
    if name.endswith(".json"):
        return _from_file(Path(name))
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; {instead(name, RECIPES, _OR_FILE)}")
    return RECIPES[name]()


_OR_FILE = "or a run's config.json"


def describe(name: str) -> str:
    """The first line of a recipe's documentation."""
    return (RECIPES[name].__doc__ or "").strip().splitlines()[0]


def sources(name: str) -> str:
    """Where a recipe's values come from: its documentation and its file's; empty for an earlier run's."""
    if name not in RECIPES:
        return ""
    function = RECIPES[name]
    return f"{inspect.getdoc(function)}\n\n{inspect.getdoc(sys.modules[function.__module__])}"


def _from_file(path: Path) -> Config:
    try:
        values = json.loads(path.read_text("utf-8", "surrogateescape"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no configuration")
    config = with_paths(from_dict(values), os.path.expanduser)
    folder = Path(os.path.abspath(path)).parent
    if path.name != "config.json" or not os.path.isdir(folder / "checkpoints"):
        return config
    # a run's own: it goes on where the file lies, wherever it is started, and if its folder was moved
    return replace(config, run=replace(config.run, folder=str(folder.parent), name=folder.name))


def published_top1(name: str) -> float | None:
    """The Top-1 that a recipe's documentation states as published, percent; twins share their namesake's."""
    known = name if name in RECIPES else ""
    for each in (known, known.removesuffix("-published")):
        stated = (
            re.search(r"published: (\d+\.?\d*) % Top-1", RECIPES[each].__doc__ or "")
            if each in RECIPES
            else None
        )
        if stated:
            return float(stated[1])
    return None
