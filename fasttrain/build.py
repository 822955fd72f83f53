"""The parts of a run, built from its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import distributed
from .checkpoint import load_weights
from .config import Config
from .distributed import Process
from .errors import ConfigError
from .hardware import Precision, choose_batch_norm, choose_conv1x1, choose_kernels, choose_precision
from .kernels.normalized_loss import IN_TRITON
from .kernels.runtime import Kernels
from .methods import build_method
from .models import StagedNetwork, create_model, fuse_batch_norms, fuse_convolutions
from .optim import build_ema, build_optimizer, build_schedule
from .pipelines.digits import write_digits
from .pipelines.folder import ImageFolder, scan
from .pipelines.loader import EvalLoader, TrainLoader, eval_loader, train_loader
from .randomness import Stream, generator
from .step import TrainStep
from .subnets import OrderedSpace, Subnet, ordered_space, sample_distinct, sampling_space


@dataclass(frozen=True, slots=True)
class Folders:
    """Where the images are.

    Attributes:
        train: training images.
        val: validation images of the same classes, or None.
    """

    train: ImageFolder
    val: ImageFolder | None


def find_images(config: Config, process: Process) -> Folders:
    """Scan the training and validation folders; the digits are written first where they are missing.

    Raises:
        ConfigError: no training folder given, or fewer outputs than classes.
        DataError: a folder that is missing, empty, or does not fit.
    """
    data = config.data
    if not data.train:
        raise ConfigError("data.train is empty; allowed: a folder with one folder of images per class")
    train_folder = Path(data.train)
    if (
        data.builtin == "digits"
        and process.is_main
        and train_folder.name == "train"
        and not train_folder.exists()
    ):
        write_digits(train_folder.parent)
    distributed.barrier()
    train = scan(data.train)
    val = scan(data.val, classes=train.classes) if data.val else None
    if 0 < data.num_classes < len(train.classes):
        raise ConfigError(
            f"data.num_classes is {data.num_classes}; allowed: 0 or at least the {len(train.classes)} class "
            f"folders of {data.train}"
        )
    return Folders(train, val)


def build_network(config: Config, classes: int, device: torch.device) -> StagedNetwork:
    """The network on its device, initialized from the seed or from given weights, fused as asked.

    Raises:
        ConfigError: an unknown name, images smaller than the network allows, or an implementation of batch
            norm or 1x1 convolutions that does not run here.
        CheckpointError: weights that cannot be read or do not fit.
    """
    torch.manual_seed(config.run.seed)
    network = create_model(config.model.name, config.data.num_classes or classes)
    sides = {"data.crop": config.data.crop, "data.val_crop": config.data.val_crop}
    if config.method.sizes:
        sides["the least of method.sizes"] = min(config.method.sizes)
    for name, side in sides.items():
        if side < network.reduction:
            raise ConfigError(
                f"{name} is {side}; allowed: at least {network.reduction} pixels for {config.model.name}"
            )
    _check_batch_norm(config, network.reduction)
    if config.model.weights:
        load_weights(network, Path(config.model.weights))
    memory_format = torch.channels_last if config.run.channels_last else torch.contiguous_format
    network = network.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    _fuse(config, network, device)
    return network


def _fuse(config: Config, network: StagedNetwork, device: torch.device) -> None:
    precision = choose_precision(config.run.precision, device)
    batch_norm = choose_batch_norm(config.model.batch_norm, device, precision, config.run.channels_last)
    conv1x1 = choose_conv1x1(config.model.conv1x1, batch_norm)
    if batch_norm != "torch":
        fuse_batch_norms(network, batch_norm)
    if conv1x1 != "torch" and not fuse_convolutions(network):
        raise ConfigError(
            f"model.conv1x1 is {conv1x1!r}; allowed for {config.model.name}, which has no plain bottlenecks: "
            "torch"
        )


def _check_batch_norm(config: Config, reduction: int) -> None:
    """Training-mode batch norm needs two values per channel: two images, or two pixels of one."""
    smallest = min((config.data.crop, *config.method.sizes))
    if config.run.batch // distributed.processes() == 1 and smallest <= reduction:
        raise ConfigError(
            f"run.batch is {config.run.batch}; allowed: at least 2 images per process, since images of "
            f"{smallest} pixels end as one pixel and batch norm needs two values per channel"
        )


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
    """Augmented training images for batch-norm statistics: a function of (seed, epoch) alone."""
    seed = int(generator(config.run.seed, Stream.CALIBRATION, epoch).integers(2**31))
    loader = _train_loader(config, folder, process, dtype, seed=seed)
    try:
        images = 0
        for batch in loader.epoch(0):
            yield batch.images
            images += len(batch.images) * process.world
            if images >= config.evaluation.calibration_images:
                break
    finally:
        loader.close()


def loss_kernels(config: Config, device: torch.device) -> Kernels:
    """The implementation of the loss: `run.kernels`, where the supervision has kernels.

    Raises:
        ConfigError: Triton asked for where it does not run, or for a supervision without kernels.
    """
    supervision = config.method.supervision
    if config.method.name == "common" or supervision in IN_TRITON:
        return choose_kernels(config.run.kernels, device)
    if config.run.kernels == "triton":
        raise ConfigError(
            f"run.kernels is 'triton' with method.supervision {supervision!r}; allowed: auto, reference, or "
            f"supervision {', '.join(IN_TRITON)}"
        )
    return "reference"


def build_step(
    config: Config,
    network: StagedNetwork,
    process: Process,
    precision: Precision,
    steps_per_epoch: int,
) -> TrainStep:
    """The training step.

    Raises:
        ConfigError: a sampling space that does not fit the network, or an implementation of the loss or the
            optimizer that does not run here.
    """
    if config.method.supervision == "dkd" and network.num_classes < 2:
        raise ConfigError("method.supervision is 'dkd' with 1 class; allowed: 2 or more, or kl")
    joint = config.method.backward == "joint"
    method = build_method(config, network, loss_kernels(config, process.device))
    return TrainStep(
        forward=distributed.wrap(network, process, joint=joint),
        method=method,
        optimizer=build_optimizer(network.parameters(), config.optim, process.device),
        schedule=build_schedule(config.optim, config.run.epochs, steps_per_epoch),
        precision=precision,
        scaler=torch.amp.GradScaler(process.device.type, enabled=precision.name == "fp16"),
        clip=config.optim.clip,
        ema=build_ema(network, config.optim.ema),
        reduce=None if joint else distributed.average_gradients,
    )


def subnets_to_evaluate(config: Config, network: StagedNetwork, count: int) -> list[Subnet]:
    """`count` subnets of the sampling space, -1 for all of it; raw sampling is judged by ordered subnets.

    Raises:
        ConfigError: all of a space too large to walk.
    """
    method = config.method
    if method.sampling == "raw":
        space = ordered_space("default", network.depths)
    else:
        space = sampling_space(method.sampling, method.space, network.depths)  # type: ignore[assignment]
    if count >= 0:
        return sample_distinct(space, count, config.run.seed)
    if isinstance(space, OrderedSpace):
        return list(space)
    if len(space) > LARGEST_WALK:
        raise ConfigError(
            f"evaluation.subnets is -1, the space holds {len(space)}; allowed: up to {LARGEST_WALK}"
        )
    return sample_distinct(space, len(space), config.run.seed)


LARGEST_WALK = 65536
"""Subnets in one evaluation walk at most."""
