"""Evaluate the checkpoint of an earlier run: main network and subnets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from . import build, checkpoint, distributed, loading
from .config import Config, from_dict
from .errors import CheckpointError, ConfigError
from .evaluation import Accuracy, SubnetReport, evaluate, evaluate_subnets
from .hardware import choose_precision, configure_backends


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accuracy of a checkpoint: which one, the main network, and its subnets by kind of statistics."""

    path: Path
    main: Accuracy
    subnets: list[SubnetReport]


def evaluate_checkpoint(
    path: Path,
    *,
    train: str = "",
    val: str = "",
    subnets: int = -1,
    statistics: str = "reestimated",
    batch: int = 0,
    device: str = "auto",
) -> Verdict:
    """Evaluate a checkpoint on validation images.

    Args:
        path: of the checkpoint; its configuration and classes are read from it.
        train: training images for the batch-norm statistics; empty: as in the run.
        val: validation images; empty: as in the run.
        subnets: how many of the run's space; -1 all, 0 none.
        statistics: `reestimated`, `main` or `both`.
        batch: images per process and batch; 0: as in the run.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        RunError: see `fasttrain.errors`.
    """
    state = checkpoint.load(path)
    with checkpoint.restoring(path):
        recorded = from_dict(state["config"])
    config = _override(recorded, train, val, batch, device)
    process = distributed.start(config.run)
    try:
        configure_backends(config.run, process.device)
        precision = choose_precision(config.run.precision, process.device)
        folders = loading.find_images(config, process)
        if folders.val is None:
            raise ConfigError("data.val is empty; allowed: a folder of validation images (--val DIR)")
        if list(folders.train.classes) != state["classes"]:
            raise CheckpointError(f"{path} was trained on other classes than {config.data.train} holds")
        network = build.build_network(config, len(state["classes"]), process.device)
        with checkpoint.restoring(path):
            checkpoint.load_state(network, checkpoint.judged_weights(state), path)
        chosen = build.subnets_to_evaluate(config, network, subnets)
        loader = loading.build_eval_loader(config, folders.val, process, precision.image_dtype)

        def validation() -> Iterator[tuple[Tensor, Tensor]]:
            return ((each.images, each.targets) for each in loader)

        def calibration() -> Iterator[Tensor]:
            epoch = state["position"]["epoch"]
            return loading.calibration_batches(config, folders.train, process, precision.image_dtype, epoch)

        normalize = config.evaluation.normalize
        main = evaluate(network, [network.full], validation(), precision, normalize=normalize)[0]
        reports = (
            evaluate_subnets(network, chosen, validation, calibration, precision, statistics)
            if chosen
            else []
        )
        loader.close()
        return Verdict(path, main, reports)
    finally:
        distributed.stop()


def _override(config: Config, train: str, val: str, batch: int, device: str) -> Config:
    data = replace(config.data, train=train or config.data.train, val=val or config.data.val)
    evaluation = replace(config.evaluation, batch=batch or config.evaluation.batch)
    run = replace(config.run, device=device, sync_batch_norm=False)  # type: ignore[arg-type]
    # evaluation has no use for fused convolutions, and another device may not run them
    model = replace(config.model, weights="", new_head=False, conv1x1="torch")
    return replace(config, data=data, evaluation=evaluation, run=run, model=model)
