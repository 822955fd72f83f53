"""A trained network made ready to look at: on its device, in its precision, with its images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from . import distributed, loading
from .config import Config
from .distributed import Process
from .errors import ConfigError
from .evaluation import NodeStatistics, estimate_statistics, evaluate
from .hardware import Precision, choose_precision, configure_backends
from .models import StagedNetwork, batch_norms
from .pipelines.examine import refuse_deadly
from .pipelines.folder import ImageFolder, reordered, thinned
from .pipelines.loader import EvalLoader
from .pipelines.manifest import check_presence, open_images
from .subnets import Subnet
from .trained import Trained


@dataclass(frozen=True, slots=True)
class Opened:
    """A network with the weights that evaluation judges, and its images.

    Attributes:
        trained: what is known of it.
        config: of its run, with what was overridden.
        network: on its device.
        precision: of forward passes.
        process: this one.
        train: training images, if statistics are to be re-estimated from them.
        loader: of the validation images.
        notes: lines about the images that a user should see.
    """

    trained: Trained
    config: Config
    network: StagedNetwork
    precision: Precision
    process: Process
    train: ImageFolder | None
    loader: EvalLoader
    notes: Sequence[str] = ()

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Validation images [B, 3, H, W] and targets, int64 [B]; each call starts anew."""
        return ((each.images, each.targets) for each in self.loader)

    def calibration(self) -> Iterator[Tensor]:
        """Augmented training images [B, 3, H, W], always the same, for batch-norm statistics."""
        assert self.train is not None
        dtype, epoch = self.precision.image_dtype, self.trained.epoch or 0
        return loading.calibration_batches(self.config, self.train, self.process, dtype, epoch)

    def statistics(self, subnets: Sequence[Subnet], kind: str) -> NodeStatistics | None:
        """Batch-norm statistics of subnets: `reestimated` for each, or the `main` network's (None)."""
        if kind == "main":
            return None
        return estimate_statistics(self.network, subnets, self.calibration(), self.precision)

    def top1(self, subnets: Sequence[Subnet], kind: str) -> list[float]:
        """Top-1 of each subnet in percent, in one walk, with statistics of a `kind` (see `statistics`)."""
        different = sorted(set(subnets))  # neighbours share most: few activations wait at a time
        own = self.statistics(different, kind)
        accuracies = evaluate(self.network, different, self.validation(), self.precision, own)
        found = {subnet: each.top1 for subnet, each in zip(different, accuracies, strict=True)}
        return [found[subnet] for subnet in subnets]


@contextmanager
def opened(
    trained: Trained,
    calibrates: bool,
    *,
    train: str = "",
    val: str = "",
    batch: int = 0,
    images: int = 0,
    device: str = "auto",
) -> Iterator[Opened]:
    """Make a trained network ready; in all processes of a run, where there are several.

    Args:
        trained: as `open_trained` gives it.
        calibrates: whether batch-norm statistics, where there are some, are re-estimated, so that training
            images are needed.
        train: training images; empty: as in the run.
        val: validation images; empty: as in the run.
        batch: images per process and batch; 0: as in the run.
        images: how many of the validation images, evenly spread over them; 0: all.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        RunError: see `fasttrain.errors`.
    """
    config = for_evaluation(trained.config, train, val, batch, device)
    process = distributed.start(config.run)
    try:
        configure_backends(config.run, process.device)
        precision = choose_precision(config.run.precision, process.device)
        network = trained.build(config, process.device)
        calibrates = calibrates and bool(batch_norms(network))
        train_images, val_images = _find_images(config, process, trained, calibrates)
        chosen = thinned(val_images, images) if images else val_images
        loader = loading.build_eval_loader(config, chosen, process, precision.image_dtype)
        try:
            notes = notes_on(trained, [each for each in (train_images, val_images) if each is not None])
            yield Opened(trained, config, network, precision, process, train_images, loader, notes)
        finally:
            loader.close()
    finally:
        distributed.stop()


def _find_images(
    config: Config, process: Process, trained: Trained, calibrates: bool
) -> tuple[ImageFolder | None, ImageFolder]:
    """Training images, if statistics are re-estimated from them, and validation images, of its classes."""
    if not config.data.val:
        raise ConfigError("data.val is empty; allowed: a folder of validation images (--val DIR)")
    if calibrates and not config.data.train:
        raise ConfigError(
            "data.train is empty; allowed: training images, from which batch-norm statistics are "
            "re-estimated (--train DIR), or --statistics main"
        )
    loading.provide_digits(config, process)
    if not calibrates:
        return None, images_of(trained, config.data.val, looks=process.is_main)
    train = open_images(config.data.train)
    val = open_images(config.data.val, train.classes)
    train = trained.fitted(train)
    if process.is_main:
        check_presence(train)
        check_presence(val)
    return train, reordered(val, train.classes)


def images_of(trained: Trained, path: str, *, looks: bool = True) -> ImageFolder:
    """Images of a network's classes, in the order of its outputs; `looks`: whether the files are there.

    Raises:
        DataError: a folder or manifest that is missing, empty, or does not fit.
        CheckpointError: they are of other classes.
    """
    images = trained.fitted(open_images(path))
    if looks:
        check_presence(images)
        refuse_deadly(images)
    return images


def notes_on(trained: Trained, opened: Sequence[ImageFolder]) -> list[str]:
    """What is to be known of the images of a network's classes, in lines."""
    guess = trained.assumption(opened[0]) if opened else ""
    return [line for line in (guess, *(images.omission for images in opened)) if line]


def for_evaluation(config: Config, train: str, val: str, batch: int, device: str) -> Config:
    """A run's configuration with other images, evaluation batch and device; what is empty or 0 stays."""
    data = replace(config.data, train=train or config.data.train, val=val or config.data.val)
    evaluation = replace(config.evaluation, batch=batch or config.evaluation.batch)
    run = replace(config.run, device=device, sync_batch_norm=False)  # type: ignore[arg-type]
    # evaluation has no use for fused convolutions, and another device may not run them
    model = replace(config.model, weights="", new_head=False, conv1x1="torch")
    return replace(config, data=data, evaluation=evaluation, run=run, model=model)
