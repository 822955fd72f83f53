"""Brings a fault about in the trainer's processes; Python imports it at start, being first in PYTHONPATH.

FAULT is `WHAT:RANK:STEP`: before the global step STEP (counted from 0) of rank RANK (`*`: of each), WHAT of
`FAULTS` happens. TINY puts a small network with batch norm and dropout in the place of the recipe's.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def _send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _out_of_memory() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def _crash() -> None:
    raise RuntimeError("a fault was asked for")


def _pause() -> None:
    """So long that a test can do something meanwhile."""
    time.sleep(8)


def _is_first() -> bool:
    """Whether the fault has not happened yet, where FAULT_ONCE names a file that remembers it."""
    once = os.environ.get("FAULT_ONCE")
    try:
        if once:
            open(f"{once}-{os.environ.get('RANK', '0')}", "x").close()
        return True
    except FileExistsError:
        return False


FAULTS: dict[str, Callable[[], None]] = {
    "kill": _send(signal.SIGKILL),
    "stop": _send(signal.SIGSTOP),
    "term": _send(signal.SIGTERM),
    "usr1": _send(signal.SIGUSR1),
    "int": _send(signal.SIGINT),
    "oom": _out_of_memory,
    "crash": _crash,
    "pause": _pause,
}


def _install_fault(what: str, rank: str, at: int) -> None:
    from fasttrain.step import TrainStep

    if rank not in ("*", os.environ.get("RANK", "0")):
        return
    original = TrainStep.__call__

    def step(self: Any, images: Any, *arguments: Any, global_step: int, **named: Any) -> Any:
        if global_step == at and _is_first():
            if what == "nan":
                images = images * float("nan")
            else:
                FAULTS[what]()
        return original(self, images, *arguments, global_step=global_step, **named)

    TrainStep.__call__ = step  # type: ignore[method-assign]


def _install_tiny() -> None:
    from fasttrain import build
    from fasttrain.models import StagedNetwork
    from tests.networks import tiny_resnet

    def create(name: str, num_classes: int) -> StagedNetwork:
        network = tiny_resnet((2, 2), classes=num_classes).float()
        network.drop_rate = 0.2
        return network

    build.create_model = create


def install() -> None:
    """What the environment asks for."""
    if os.environ.get("TINY"):
        _install_tiny()
    if os.environ.get("FAULT"):
        what, rank, step = os.environ["FAULT"].split(":")
        _install_fault(what, rank, int(step))


class _AfterTrainer(importlib.abc.MetaPathFinder):
    """Calls `install` once the trainer or the check before it has been imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name not in ("fasttrain.trainer", "fasttrain.preflight"):
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            install()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _AfterTrainer())
