"""A run's images: its folders, and the loaders of training, evaluation and calibration batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from . import distributed
from .config import Config
from .distributed import Process
from .errors import CheckpointError, ConfigError
from .mixing import build_mixing
from .pipelines.classes import arranged, assumption, difference
from .pipelines.digits import write_digits
from .pipelines.draws import Split
from .pipelines.examine import refuse_deadly
from .pipelines.folder import ImageFolder, reordered
from .pipelines.loader import EvalLoader, TrainLoader, eval_loader, train_loader
from .pipelines.manifest import check_presence, open_images
from .randomness import Stream, generator
from .trained import named_outputs


@dataclass(frozen=True, slots=True)
class Folders:
    """Where the images are.

    Attributes:
        train: training images.
        val: validation images of the same classes, or None.
        assumption: a line where the order of the classes is a guess that the weights may not fit; else empty.
    """

    train: ImageFolder
    val: ImageFolder | None
    assumption: str = ""


def find_images(config: Config, process: Process) -> Folders:
    """List the training and validation images; the digits are written first where they are missing.

    Raises:
        ConfigError: no training images given, or fewer outputs than classes.
        DataError: a folder or manifest that is missing, empty, or does not fit, or files that are not as
            their manifest says.
    """
    provide_digits(config, process)
    folders = open_folders(config)
    if process.is_main:
        for images in filter(None, (folders.train, folders.val)):
            check_presence(images)
            refuse_deadly(images)
    return folders


def provide_digits(config: Config, process: Process) -> None:
    """Write the built-in digits where they are the run's images and missing; in all processes of a run."""
    if process.is_main and digits_missing(config):
        write_digits(Path(config.data.train).parent)
    distributed.barrier()


def digits_missing(config: Config) -> bool:
    """Whether the images are the built-in digits, still to be written."""
    folder = Path(config.data.train)
    return config.data.builtin == "digits" and folder.name == "train" and not folder.exists()


def open_folders(config: Config) -> Folders:
    """List the training and validation images, which are there.

    Raises:
        ConfigError, DataError: as `find_images`, but that no file is compared with its manifest.
        CheckpointError: weights to start from that cannot be read, or whose outputs are other classes.
    """
    data = config.data
    if not data.train:
        raise ConfigError(
            "data.train is empty; allowed: a folder with one folder of images per class, or a manifest"
        )
    train, assumed = _ordered(config, open_images(data.train))
    val = open_images(data.val, classes=train.classes) if data.val else None
    if 0 < data.num_classes < len(train.classes):
        raise ConfigError(
            f"data.num_classes is {data.num_classes}; allowed: 0 or at least the {len(train.classes)} "
            f"classes of {data.train}"
        )
    return Folders(train, val, assumed)


def _ordered(config: Config, images: ImageFolder) -> tuple[ImageFolder, str]:
    """Training images with labels in the order of the outputs, and a line where that order is a guess."""
    order, weights = config.data.classes, config.model.weights
    starts = bool(weights) and not config.model.new_head
    names = named_outputs(Path(weights)) if starts else ()
    if order:
        asked = arranged(images.classes, order, "data.classes")
        told = f"data.classes gives another order than {weights} names: {', '.join(names)}"
        return reordered(images, asked), told if names and names != asked else ""
    if not starts:
        return images, ""
    if not names:
        return images, assumption(images.classes, images.root, "--data.classes")
    differing = difference(images.classes, names)
    if differing:
        raise CheckpointError(
            f"{weights} was trained on other classes than {images.root} holds: {differing}; allowed: the "
            "same; for other classes: --model.new-head; for other names: --data.classes FILE, which lists "
            "the folders in the order of its outputs"
        )
    return reordered(images, names), ""


def listing_notes(folders: Folders) -> list[str]:
    """What is to be known of how the images were listed, in lines."""
    given = (("data.train", folders.train), ("data.val", folders.val))
    omissions = [f"{name}: {images.omission}" for name, images in given if images and images.omission]
    return [*omissions, *([folders.assumption] if folders.assumption else [])]


def validation_notes(folders: Folders) -> list[str]:
    """What a log should tell about the images' validation, a line for each of training and validation."""
    notes = []
    for name, images in (("data.train", folders.train), ("data.val", folders.val)):
        if images is None:
            continue
        if not images.contents:
            notes.append(
                f"{name}: files under {images.root} are not validated (fasttrain data check DIR -o MANIFEST)"
            )
        elif images.left_out:
            notes.append(f"{name}: {images.left_out} bad images are left out by the manifest")
    return notes


def steps_per_epoch(config: Config, folder: ImageFolder, world: int) -> int:
    """Training steps per epoch of `world` processes.

    Raises:
        ConfigError: a batch that does not divide over the processes or is larger than the data.
    """
    batch = distributed.local_batch(config.run.batch, world)
    return Split(images=len(folder.files), batch=batch, world=world, drop_last=config.data.drop_last).steps


def build_train_loader(
    config: Config, folder: ImageFolder, process: Process, dtype: torch.dtype
) -> TrainLoader:
    """Full-size batches, and the downscaled ones that the method asks for.

    Raises:
        ConfigError: a batch that does not divide over the processes or is larger than the data.
    """
    downscaled = config.method.name == "stimulative" and config.method.subnet_inputs == "downscaled"
    sizes = config.method.sizes if downscaled else ()
    return _train_loader(config, folder, process, dtype, seed=config.run.seed, sizes=sizes)


def _train_loader(
    config: Config,
    folder: ImageFolder,
    process: Process,
    dtype: torch.dtype,
    *,
    seed: int,
    sizes: tuple[int, ...] = (),
) -> TrainLoader:
    return train_loader(
        config.data,
        folder,
        batch=distributed.local_batch(config.run.batch, process.world),
        seed=seed,
        rank=process.rank,
        world=process.world,
        device=process.device,
        dtype=dtype,
        sizes=sizes,
        sizes_per_step=config.method.sizes_per_step if sizes else 0,
    )


def build_eval_loader(
    config: Config, folder: ImageFolder, process: Process, dtype: torch.dtype
) -> EvalLoader:
    """Validation images, each exactly once over all processes."""
    return eval_loader(
        config.data,
        folder,
        batch=config.evaluation.batch,
        rank=process.rank,
        world=process.world,
        device=process.device,
        dtype=dtype,
    )


def calibration_batches(
    config: Config, folder: ImageFolder, process: Process, dtype: torch.dtype, epoch: int
) -> Iterator[Tensor]:
    """Augmented and mixed training images for batch-norm statistics: a function of (seed, epoch) alone.

    In batches of `run.batch`; where the images are fewer than that, in one of as many as they are. A single
    image that is left over is left out, since batch norm may need two values per channel.
    """
    seed = int(generator(config.run.seed, Stream.CALIBRATION, epoch).integers(2**31))
    most = max(process.world, len(folder.files) // process.world * process.world)
    run = replace(config.run, batch=min(config.run.batch, most), accumulate=1)
    config = replace(config, data=replace(config.data, repeats=1), run=run)  # different images tell more
    loader = _train_loader(config, folder, process, dtype, seed=seed)
    mixing = build_mixing(config.data, len(folder.classes), seed)
    try:
        images = 0
        for step, batch in enumerate(loader.epoch(0)):
            if len(batch.images) == 1 < run.batch // process.world:
                break
            mixed = mixing(batch.images, (), batch.targets, epoch=0, step=step)[0] if mixing else batch.images
            yield mixed
            images += len(batch.images) * process.world
            if images >= config.evaluation.calibration_images:
                break
    finally:
        loader.close()
