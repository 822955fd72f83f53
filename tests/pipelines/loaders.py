"""The pipelines' loaders for tests: each is closed when its test ends (conftest.py)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from fasttrain.pipelines import loader
from fasttrain.pipelines.loader import EvalLoader, TrainLoader

OPENED = ExitStack()
"""What the running test has opened."""


def train_loader(*arguments: Any, **options: Any) -> TrainLoader:
    """As `fasttrain.pipelines.loader.train_loader`."""
    return _closed_later(loader.train_loader(*arguments, **options))


def eval_loader(*arguments: Any, **options: Any) -> EvalLoader:
    """As `fasttrain.pipelines.loader.eval_loader`."""
    return _closed_later(loader.eval_loader(*arguments, **options))


def _closed_later(opened: Any) -> Any:
    OPENED.callback(opened.close)
    return opened
