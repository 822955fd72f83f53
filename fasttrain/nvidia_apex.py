"""NVIDIA's apex: optional, told apart from PyPI's package of that name, imported where a run asks for it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from typing import Any

from .errors import ConfigError

HOW_TO_GET = (
    "build it from its source (github.com/NVIDIA/apex, with its cpp, cuda and bnp extensions) or use an NGC "
    "PyTorch container; PyPI's 'apex' is unrelated"
)


def found() -> str:
    """What `import apex` would give here, for people."""
    if importlib.util.find_spec("apex") is None:
        return "not installed (optional)"
    if importlib.util.find_spec("apex.optimizers") is not None:
        return "NVIDIA's"
    try:
        summary = importlib.metadata.metadata("apex")["Summary"]
    except importlib.metadata.PackageNotFoundError:
        summary = "no distribution metadata"
    return (
        f"warning: another package of that name ({summary}), not NVIDIA's: pip uninstall apex, then "
        f"{HOW_TO_GET}"
    )


def load(field: str, module: str, name: str) -> Any:
    """One of apex's classes.

    Args:
        field: the configuration's field that asks for it, for the message.
        module: of apex.
        name: of the class.

    Raises:
        ConfigError: apex or its extension is missing, or another package has its name.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{field} is 'apex', but {module}.{name} cannot be imported ({error}). NVIDIA's apex here: "
            f"{found()}. To get it: {HOW_TO_GET}"
        ) from None
