"""Evaluate the checkpoint of an earlier run: main network and subnets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from . import build, distributed, loading
from .config import Config
from .distributed import Process
from .errors import ConfigError
from .evaluation import Accuracy, SubnetReport, evaluate, evaluate_subnets
from .hardware import choose_precision, configure_backends
from .pipelines.folder import ImageFolder
from .pipelines.manifest import check_presence, open_images
from .trained import Trained, open_trained


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accuracy of a checkpoint: which one, the main network, and its subnets by kind of statistics."""

    path: Path
    main: Accuracy
    subnets: list[SubnetReport]


def evaluate_checkpoint(
    path: Path,
    *,
    which: str = "best",
    recipe: str = "",
    train: str = "",
    val: str = "",
    subnets: int = -1,
    statistics: str = "reestimated",
    batch: int = 0,
    device: str = "auto",
) -> Verdict:
    """Evaluate a trained network on validation images.

    Args:
        path: of a run's folder, a checkpoint or a file of weights; see `trained.open_trained`.
        which: `best` or `last`, of a run's folder.
        recipe: a recipe or config.json that a file of weights fits.
        train: training images for the batch-norm statistics; empty: as in the run.
        val: validation images; empty: as in the run.
        subnets: how many of the run's space; -1 all, 0 none.
        statistics: `reestimated`, `main` or `both`.
        batch: images per process and batch; 0: as in the run.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        RunError: see `fasttrain.errors`.
    """
    trained = open_trained(path, which, recipe)
    config = for_evaluation(trained.config, train, val, batch, device)
    process = distributed.start(config.run)
    try:
        configure_backends(config.run, process.device)
        precision = choose_precision(config.run.precision, process.device)
        calibrates = subnets != 0 and statistics != "main"
        train_images, val_images = _find_images(config, process, trained, calibrates)
        network = trained.build(config, process.device)
        chosen = build.subnets_to_evaluate(config, network, subnets)
        loader = loading.build_eval_loader(config, val_images, process, precision.image_dtype)

        def validation() -> Iterator[tuple[Tensor, Tensor]]:
            return ((each.images, each.targets) for each in loader)

        def calibration() -> Iterator[Tensor]:
            assert train_images is not None
            epoch = trained.epoch or 0
            return loading.calibration_batches(config, train_images, process, precision.image_dtype, epoch)

        normalize = config.evaluation.normalize
        main = evaluate(network, [network.full], validation(), precision, normalize=normalize)[0]
        reports = (
            evaluate_subnets(network, chosen, validation, calibration, precision, statistics)
            if chosen
            else []
        )
        loader.close()
        return Verdict(trained.path, main, reports)
    finally:
        distributed.stop()


def _find_images(
    config: Config, process: Process, trained: Trained, calibrates: bool
) -> tuple[ImageFolder | None, ImageFolder]:
    """Training images, if statistics are re-estimated from them, and validation images, of its classes."""
    if not config.data.val:
        raise ConfigError("data.val is empty; allowed: a folder of validation images (--val DIR)")
    if calibrates or loading.digits_missing(config):
        folders = loading.find_images(config, process)
        trained.check_classes(folders.train)
        assert folders.val is not None
        return folders.train, folders.val
    images = open_images(config.data.val)
    trained.check_classes(images)
    if process.is_main:
        check_presence(images)
    return None, images


def for_evaluation(config: Config, train: str, val: str, batch: int, device: str) -> Config:
    """A run's configuration with other images, evaluation batch and device; what is empty or 0 stays."""
    data = replace(config.data, train=train or config.data.train, val=val or config.data.val)
    evaluation = replace(config.evaluation, batch=batch or config.evaluation.batch)
    run = replace(config.run, device=device, sync_batch_norm=False)  # type: ignore[arg-type]
    # evaluation has no use for fused convolutions, and another device may not run them
    model = replace(config.model, weights="", new_head=False, conv1x1="torch")
    return replace(config, data=data, evaluation=evaluation, run=run, model=model)
