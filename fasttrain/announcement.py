"""What the log says at a run's start: images, device, implementations, and what may surprise."""

from __future__ import annotations

from collections.abc import Iterator

from . import build, effects, loading
from .config import Config, Method
from .distributed import Process
from .hardware import Precision, describe, triton_fault
from .loading import Folders
from .models import FusedBatchNorm, StagedNetwork, batch_norms
from .optim import choose_impl

OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW", "lamb": "LAMB"}
"""What the log calls them."""


def announce(
    config: Config,
    process: Process,
    folders: Folders,
    network: StagedNetwork,
    precision: Precision,
    steps_per_epoch: int,
) -> Iterator[str]:
    """The lines."""
    images = f"{len(folders.train.files)} training images of {len(folders.train.classes)} classes"
    if folders.val is None:
        images += ", no validation images (data.val is empty): nothing will be evaluated"
    else:
        images += f", {len(folders.val.files)} validation images"
    yield f"{config.recipe or 'run'}: {config.model.name}, {config.method.name} training, {images}"
    yield from loading.listing_notes(folders)
    yield from loading.validation_notes(folders)
    yield (
        f"{describe(process.device, precision, config.run.tf32)}, "
        f"{process.world} process{'es' if process.world > 1 else ''}, "
        f"global batch {config.run.batch}, {steps_per_epoch} steps per epoch"
    )
    if config.model.weights:
        head = (
            f", but a new classifier ({', '.join(network.classifier_names)})" if config.model.new_head else ""
        )
        yield f"starts from the weights in {config.model.weights}{head}"
    if network.origin:
        yield network.origin
    yield _implementations(config, process, network)
    yield from effects.notes(config)
    yield from square_notes(config.method, network)
    yield from _warnings(config, process)


def square_notes(method: Method, network: StagedNetwork) -> Iterator[str]:
    """A line if a side of masked squares was asked for where a network's patches are masked."""
    masked = method.name == "augsub" and method.drop == "masking" and network.mask_square
    if masked and method.mask_square not in (Method().mask_square, network.mask_square):
        yield f"has no effect in this run: method.mask_square ({network.title} is masked by its patches)"


def _implementations(config: Config, process: Process, network: StagedNetwork) -> str:
    """What computes the loss, batch norm, 1x1 convolutions if not PyTorch, and the optimizer's step."""
    norms = batch_norms(network)
    fused = [layer for layer in norms if isinstance(layer, FusedBatchNorm)]
    batch_norm = "torch" if norms else "none"
    if fused:
        batch_norm = f"{fused[0].implementation} ({len(fused)} of {len(norms)} fused)"
    conv1x1 = "" if config.model.conv1x1 == "torch" else f"1x1 convolutions {config.model.conv1x1}, "
    return (
        f"kernels: loss {build.loss_kernels(config, process.device)}, batch norm {batch_norm}, "
        f"{conv1x1}{OPTIMIZERS[config.optim.name]} {choose_impl(config.optim, process.device)}"
    )


def _warnings(config: Config, process: Process) -> Iterator[str]:
    if process.device.type == "cuda" and triton_fault(process.device):
        yield f"warning: Triton's kernels are left out: {triton_fault(process.device)}"
    own = config.run.batch // process.world
    normalized = config.run.batch if config.run.sync_batch_norm else own // config.run.accumulate
    meant = config.run.batch_norm_batch
    if meant and normalized != meant:
        yield (
            f"warning: batch norm works over {normalized} images per process; the recipe means {meant}, so "
            "its published accuracy may not be met"
        )
    if (config.data.mixup or config.data.cutmix) and own % 2:
        yield (
            f"warning: {own} images per process are mixed in pairs: the last stays as it is, and another "
            "number of processes would mix others"
        )
