"""Open a checkpoint of an earlier run to look at its network: its weights, its images, its precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from . import build, checkpoint, distributed, loading
from .config import Config, from_dict
from .distributed import Process
from .errors import CheckpointError, ConfigError
from .evaluation import NodeStatistics, estimate_statistics, evaluate
from .hardware import Precision, choose_precision, configure_backends
from .loading import Folders
from .models import StagedNetwork
from .pipelines.folder import thinned
from .pipelines.loader import EvalLoader
from .subnets import Subnet


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint's network with the weights that evaluation judges, and its images.

    Attributes:
        path: of the checkpoint.
        config: of its run, with what was overridden.
        epoch: epochs done.
        step: global steps done.
        network: on its device.
        precision: of forward passes.
        process: this one.
        folders: training and validation images.
        loader: of the validation images.
    """

    path: Path
    config: Config
    epoch: int
    step: int
    network: StagedNetwork
    precision: Precision
    process: Process
    folders: Folders
    loader: EvalLoader

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Validation images [B, 3, H, W] and targets, int64 [B]; each call starts anew."""
        return ((each.images, each.targets) for each in self.loader)

    def calibration(self) -> Iterator[Tensor]:
        """Augmented training images [B, 3, H, W], always the same, for batch-norm statistics."""
        dtype = self.precision.image_dtype
        return loading.calibration_batches(self.config, self.folders.train, self.process, dtype, self.epoch)

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
    path: Path,
    *,
    train: str = "",
    val: str = "",
    batch: int = 0,
    images: int = 0,
    device: str = "auto",
) -> Iterator[Opened]:
    """Open a checkpoint; in all processes of a run, where there are several.

    Args:
        path: of the checkpoint; its configuration and classes are read from it.
        train: training images for the batch-norm statistics; empty: as in the run.
        val: validation images; empty: as in the run.
        batch: images per process and batch; 0: as in the run.
        images: how many of the validation images, evenly spread over them; 0: all.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        RunError: see `fasttrain.errors`.
    """
    state = checkpoint.load(path)
    config = _override(recorded_config(state, path), train, val, batch, device)
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
            epoch, step = int(state["position"]["epoch"]), int(state["position"]["global_step"])
        chosen = thinned(folders.val, images) if images else folders.val
        loader = loading.build_eval_loader(config, chosen, process, precision.image_dtype)
        try:
            yield Opened(path, config, epoch, step, network, precision, process, folders, loader)
        finally:
            loader.close()
    finally:
        distributed.stop()


def recorded_config(state: dict[str, object], path: Path) -> Config:
    """The configuration in a checkpoint's state.

    Raises:
        CheckpointError: none that this version knows.
    """
    with checkpoint.restoring(path):
        return from_dict(state["config"])  # type: ignore[arg-type]


def _override(config: Config, train: str, val: str, batch: int, device: str) -> Config:
    data = replace(config.data, train=train or config.data.train, val=val or config.data.val)
    evaluation = replace(config.evaluation, batch=batch or config.evaluation.batch)
    run = replace(config.run, device=device, sync_batch_norm=False)  # type: ignore[arg-type]
    # evaluation has no use for fused convolutions, and another device may not run them
    model = replace(config.model, weights="", conv1x1="torch")
    return replace(config, data=data, evaluation=evaluation, run=run, model=model)
