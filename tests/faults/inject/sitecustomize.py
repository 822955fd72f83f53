"""Brings faults about in the trainer's processes; Python imports it at start, being first in PYTHONPATH.

FAULT holds `WHAT:RANK:STEP` with commas between: before the global step STEP (counted from 0) of rank RANK
(`*`: each), WHAT of `FAULTS` happens; STEP may be `start` (the trainer was imported) or `evaluation` (its
first batch). FAULT_ONCE, the beginning of a file's name, lets each rank's happen at the first start alone.
SAVE_FAULT is `WHAT:POINT:SAVE`: at a point of the main process's SAVE-th checkpoint. FORGET names what a
resume leaves out. TINY puts a small network in the place of the recipe's: `1` with batch norm and dropout,
`plain` without. RECORD is a folder for the images that each rank is given.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import os
import resource
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


def _limit_files(limit: int) -> Callable[[], None]:
    """As a full disk does: the kernel refuses to write beyond a size."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


FAULTS: dict[str, Callable[[], None]] = {
    "kill": _send(signal.SIGKILL),
    "stop": _send(signal.SIGSTOP),
    "term": _send(signal.SIGTERM),
    "usr1": _send(signal.SIGUSR1),
    "int": _send(signal.SIGINT),
    "oom": _out_of_memory,
    "crash": _crash,
    "full": _limit_files(20_000),
    "room": _limit_files(resource.RLIM_INFINITY),
    "slow": lambda: time.sleep(20),
    "pause": lambda: time.sleep(8),
}


def _put(owner: Any, **replacements: Any) -> None:
    """Put something else in the place of a module's or a class's members."""
    for name, value in replacements.items():
        setattr(owner, name, value)


def _install_faults(faults: dict[str, str]) -> None:
    """What happens by the step before which it does."""
    from fasttrain import trainer
    from fasttrain.step import TrainStep

    step, evaluate = TrainStep.__call__, trainer.evaluate

    def faulty_step(self: Any, images: Any, *arguments: Any, global_step: int, **named: Any) -> Any:
        what = faults.get(str(global_step), "")
        if what == "nan":
            images = images * float("nan")
        elif what and _is_first():
            FAULTS[what]()
        if os.environ.get("RECORD"):
            _record(global_step, images)
        return step(self, images, *arguments, global_step=global_step, **named)

    def faulty_evaluate(network: Any, subnets: Any, batches: Any, *arguments: Any, **named: Any) -> Any:
        def faulty_batches() -> Any:
            for index, batch in enumerate(batches):
                if index == 0:
                    FAULTS[faults.pop("evaluation")]()
                yield batch

        given = faulty_batches() if "evaluation" in faults else batches
        return evaluate(network, subnets, given, *arguments, **named)

    _put(TrainStep, __call__=faulty_step)
    _put(trainer, evaluate=faulty_evaluate)
    if "start" in faults:
        FAULTS[faults["start"]]()


def _is_first() -> bool:
    """Whether this rank's fault has not happened yet, where FAULT_ONCE says how that is remembered."""
    once = os.environ.get("FAULT_ONCE")
    try:
        if once:
            open(f"{once}-{os.environ.get('RANK', '0')}", "x").close()
        return True
    except FileExistsError:
        return False


def _record(global_step: int, images: Any) -> None:
    hashes = [hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in images]
    with open(f"{os.environ['RECORD']}/{global_step}.txt", "a") as file:
        file.write("".join(f"{each}\n" for each in hashes))


def _install_save_fault(what: str, point: str, at: int) -> None:
    """Of the checkpoint files alone, which are told by their names."""
    from fasttrain.checkpoint import file
    from fasttrain.checkpoint.archive import Archive

    saves, size = 0, 0
    save, write, replace = Archive.save, file._Hashed.write, os.replace

    def counted(self: Any, *arguments: Any, **named: Any) -> None:
        nonlocal saves, size
        saves += 1
        save(self, *arguments, **named)
        size = self.complete()[0].stat().st_size

    def faulty_write(self: Any, data: bytes) -> int:
        if saves == at and ".pt." in self.file.name:
            if point == "first-byte" and self.bytes == 0:
                self.file.write(bytes(data)[:1])
                self.file.flush()
                FAULTS[what]()
            if point == "half" and self.bytes > size / 2:
                self.file.flush()
                FAULTS[what]()
        return write(self, data)

    def faulty_replace(source: Any, target: Any) -> None:
        name = os.path.basename(target)
        checkpoint_file = saves == at and name.startswith("step-")
        if checkpoint_file and point == ("before-rename" if name.endswith(".pt") else "before-manifest"):
            FAULTS[what]()
        replace(source, target)
        if checkpoint_file and point == "after-rename" and name.endswith(".pt"):
            FAULTS[what]()

    _put(Archive, save=counted)
    _put(file._Hashed, write=faulty_write)
    _put(file.os, replace=faulty_replace)


def _install_forgetting(what: str) -> None:
    """A resume that leaves a part of the state as a new process has it."""
    from fasttrain.checkpoint import state
    from fasttrain.pipelines.loader import TrainLoader

    restore = state.State.restore

    def forgetful(self: Any, saved: Any, path: Any) -> None:
        if what == "ema":
            saved["ema"] = {key: value.clone() for key, value in self.step.ema.state_dict().items()}
        if what == "statistics":
            saved["ranks"] = [{**rank, "network": dict(saved["network"])} for rank in saved["ranks"]]
        restore(self, saved, path)

    _put(state.State, restore=forgetful)
    if what == "random":
        _put(state, set_random_state=lambda *_: None)
    if what == "loader":
        epoch = TrainLoader.epoch
        _put(TrainLoader, epoch=lambda self, number, start=0: epoch(self, number, 0))


def _install_tiny(kind: str) -> None:
    from fasttrain import build, flops
    from fasttrain.models import StagedNetwork
    from tests.networks import tiny_resnet

    def create(name: str, num_classes: int) -> StagedNetwork:
        network = tiny_resnet((2, 2), classes=num_classes).float()
        if kind == "plain":
            _without_batch_norm(network)
        else:
            network.drop_rate = 0.2
        return network

    for user in (build, flops):
        _put(user, create_model=create)


def _without_batch_norm(module: Any) -> None:
    import torch

    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            setattr(module, name, torch.nn.Identity())
        else:
            _without_batch_norm(child)


def install(module: str) -> None:
    """What the environment asks for; the check before the trainer only has the same network."""
    wanted = os.environ.get
    if wanted("TINY"):
        _install_tiny(os.environ["TINY"])
    if module != "fasttrain.trainer":
        return
    if wanted("FORGET"):
        _install_forgetting(os.environ["FORGET"])
    if wanted("SAVE_FAULT"):
        what, point, save = os.environ["SAVE_FAULT"].split(":")
        _install_save_fault(what, point, int(save))
    if wanted("FAULT") or wanted("RECORD"):
        faults = [fault.split(":") for fault in os.environ.get("FAULT", "").split(",") if fault]
        mine = {step: what for what, rank, step in faults if rank in ("*", os.environ.get("RANK", "0"))}
        _install_faults(mine)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls `install` once the trainer, or the check before it, has been imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name not in ("fasttrain.trainer", "fasttrain.launch.preflight"):
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            install(name)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _AfterImport())
