"""`fasttrain check`: what one process can see of a run's mistakes before any is started, in seconds.

The parts are built by the functions that training builds them by; what is left to training is the images'
content and what only a step shows.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from .. import build, effects, loading
from ..checkpoint import decode
from ..checkpoint.archive import Archive
from ..checkpoint.keeper import find_checkpoint
from ..checkpoint.state import check_fits, restore_trained
from ..config import Config
from ..distributed import Process, local_batch
from ..errors import ConfigError
from ..guards.lock import look
from ..hardware import choose_device, choose_precision
from ..models import StagedNetwork
from ..passes import check_passes
from ..pipelines.digits import CLASSES
from ..step import TrainStep
from ..telemetry.folder import RunFolder


def check_run(config: Config, processes: int = 0, nodes: int = 1) -> list[str]:
    """Look for mistakes; what was found to be there, in lines.

    Args:
        config: of the run.
        processes: on this machine; 0: one per GPU, else 1.
        nodes: machines with so many processes.

    Raises:
        RunError: the first mistake; see `fasttrain.errors`.
    """
    processes = processes or max(1, torch.cuda.device_count())
    choose_device(config.run.device, processes - 1)
    process = Process(0, 1, choose_device(config.run.device))
    world = processes * nodes
    local = local_batch(config.run.batch, world)
    folders = None if loading.digits_missing(config) else loading.open_folders(config)
    classes = CLASSES if folders is None else len(folders.train.classes)
    if folders is not None:
        check_passes(config, world, len(folders.train.files))
    network = build.build_network(config, classes, process.device, world)
    precision = choose_precision(config.run.precision, process.device)
    steps = 1 if folders is None else loading.steps_per_epoch(config, folders.train, world)
    step = build.build_step(config, network, process, precision, steps)
    build.subnets_to_evaluate(config, network, config.evaluation.subnets)
    folder = RunFolder(config)
    notes, checkpoints = check_resume(
        config, folder, network, step, None if folders is None else folders.train.classes
    )
    trained = [network] if step.auxiliary is None else [network, step.auxiliary]
    check_room(folder.path, checkpoints * sum(checkpoint_bytes(each, config) for each in trained))
    images = "the digits, still to be written" if folders is None else f"{len(folders.train.files)} images"
    return [
        f"{config.recipe or 'run'}: {config.model.name}, {images}, {classes} classes, "
        f"{world} process{'es' if world > 1 else ''} with {local} image{'s' if local > 1 else ''} each",
        *effects.notes(config),
        *([network.origin] if network.origin else []),
        *([] if folders is None else loading.listing_notes(folders)),
        *notes,
    ]


def check_resume(
    config: Config, folder: RunFolder, network: StagedNetwork, step: TrainStep, classes: Sequence[str] | None
) -> tuple[list[str], int]:
    """Whether the run can start in its folder, and go on from what is there.

    Returns:
        What was found, in lines, and how many checkpoints more there must be room for.

    Raises:
        ConfigError: another process writes the folder, it is not to be entered, or other settings.
        CheckpointError: no checkpoint is sound, or it does not fit.
    """
    look(folder.path)
    found = find_checkpoint(config, folder, Archive(folder.checkpoints))
    if found is None:
        return [f"a new run in {folder.path}"], 2
    state = decode(found.content, found.path)
    check_fits(config, state["classes"] if classes is None else classes, state, found.path)
    restore_trained(network, step, state, found.path)
    done = state["position"]["global_step"]
    return [*found.warnings, f"{folder.path} goes on from {found.path} at step {done}"], 1


def checkpoint_bytes(network: nn.Module, config: Config) -> int:
    """About what one checkpoint takes: weights, the optimizer's moments, and the weights' average, if any."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    moments = 1 if config.optim.name == "sgd" else 2
    return weights * (1 + moments + bool(config.optim.ema))


def check_room(folder: Path, needed: int) -> None:
    """Whether a folder, which need not exist yet, can be written to and has `needed` bytes left.

    Raises:
        ConfigError: it cannot, or has not.
    """
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"run.folder: cannot write to {str(folder)!r}: {reason}") from None
    if free < needed:
        raise ConfigError(
            f"run.folder is on a disk with {free / 1e6:.0f} MB left ({folder}); allowed: at least "
            f"{needed / 1e6:.0f} MB for checkpoints"
        )
