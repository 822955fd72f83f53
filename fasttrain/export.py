"""`fasttrain export`: a trained network, whole or as a bare subnet, in another program's form."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from . import loading
from .compat.weights import check_form
from .config import Config
from .distributed import Process
from .errors import ConfigError
from .evaluation import estimate_statistics, evaluate, use_statistics
from .formats import FORMATS, ONNX_OPSET, check_output, require_onnx
from .hardware import choose_device, choose_precision, configure_backends
from .models import StagedNetwork, batch_norms
from .opening import for_evaluation, images_of, notes_on
from .pipelines.folder import ImageFolder
from .trained import Trained, metadata, open_trained

STATISTICS = ("auto", "reestimated", "main")


def bare_subnet(network: StagedNetwork, depths: Sequence[int]) -> StagedNetwork:
    """A copy of the first `depths` blocks of each stage: a smaller network that stands alone.

    Its running statistics are the whole network's; `evaluation.estimate_statistics` and `use_statistics` give
    it its own.

    Raises:
        ValueError: depths that the network does not have.
    """
    subnet = copy.deepcopy(network)
    subnet.keep(depths)
    return subnet


def export(
    source: Path,
    form: str,
    output: Path,
    *,
    subnet: Sequence[int] = (),
    which: str = "best",
    recipe: str = "",
    classes: str = "",
    statistics: str = "auto",
    train: str = "",
    val: str = "",
    device: str = "auto",
    side: int = 0,
    batch: int = 0,
    force: bool = False,
) -> list[str]:
    """Write a trained network for another program; what was done, in lines.

    Args:
        source: of a run's folder, a checkpoint or a file of weights; see `trained.open_trained`.
        which: `best` or `last`, of a run's folder.
        recipe: a recipe or config.json that a file of weights fits.
        classes: the order of the outputs; see `trained.open_trained`. The file that is written names them.
        form: one of `FORMATS`.
        output: the file.
        subnet: blocks per stage of a bare subnet; empty: the whole network.
        statistics: `reestimated` from training images, `main` (as stored), or `auto`: re-estimated for a
            subnet with batch norm, if training images are at hand.
        train: training images; empty: as in the run.
        val: validation images, on which what is exported is evaluated; empty: not evaluated.
        device: `auto`, `cpu` or `cuda`, where statistics and accuracy are computed.
        side: of an ONNX graph's images, pixels; 0: of the run's validation images.
        batch: of an ONNX graph; 0: any.
        force: write over a file that exists.

    Raises:
        RunError: see `fasttrain.errors`; nothing is written then.
    """
    for option, value, allowed in (("format", form, FORMATS), ("statistics", statistics, STATISTICS)):
        if value not in allowed:
            raise ConfigError(f"--{option} is {value}; allowed: {', '.join(allowed)}")
    if form == "onnx":
        require_onnx()
    check_output(output, FORMATS[form].suffixes, force=force)
    trained = open_trained(source, which, recipe, classes)
    network = trained.network()
    _cut(network, subnet)
    if form in ("published", "timm", "torchvision"):
        check_form(form, network.name, network.depths)
    if form == "onnx" and side:
        network.check_sides("--side", [side])
    config = for_evaluation(trained.config, train, val, 0, device)
    lines, is_subnet = [trained.note] if trained.note else [], network.depths != trained.depths
    if is_subnet:
        trained = replace(trained, depths=network.depths, top1=None)
    if statistics == "auto":
        at_hand = bool(train) or os.path.exists(config.data.train)
        own = is_subnet and bool(batch_norms(network))
        statistics = "reestimated" if own and at_hand else "main"
        if own and not at_hand:
            lines.append(_NO_IMAGES)
    calibration = _open(trained, config.data.train, "--train") if statistics == "reestimated" else None
    fitting = trained if calibration is None else replace(trained, classes=calibration.classes)
    validation = _open(fitting, val, "--val") if val else None
    opened = [images for images in (calibration, validation) if images is not None]
    lines += notes_on(trained, opened)
    if trained.natural:
        if not (opened or trained.classes):
            raise ConfigError(
                f"--classes is {classes} without images, whose folders it sorts; allowed: with --val or "
                "--train, or a file with the names"
            )
        trained = replace(trained, classes=next((each.classes for each in opened), trained.classes))
    trained = _compute(trained, network, config, calibration, validation)
    options = {"side": side or config.data.val_crop, "batch": batch} if form == "onnx" else {}
    FORMATS[form].write(network, output, metadata(trained), **options)
    return [*lines, _summary(trained, form, output)]


_NO_IMAGES = (
    "warning: no training images at hand: the subnet carries the whole network's batch-norm statistics, with "
    "which it is less accurate; --train DIR gives it its own"
)


def _cut(network: StagedNetwork, depths: Sequence[int]) -> None:
    full = network.depths
    try:
        network.keep(depths or full)
    except ValueError:
        raise ConfigError(
            f"--subnet is {','.join(map(str, depths))}; allowed: 1 to {','.join(map(str, full))} blocks per "
            f"stage of {network.name}"
        ) from None


def _open(trained: Trained, path: str, option: str) -> ImageFolder:
    if not path:
        raise ConfigError(f"{option} is empty; allowed: a folder with one folder of images per class")
    return images_of(trained, path)


def _compute(
    trained: Trained,
    network: StagedNetwork,
    config: Config,
    calibration: ImageFolder | None,
    validation: ImageFolder | None,
) -> Trained:
    """Give a network the statistics of training images, and evaluate it, where there are images for it."""
    process = Process(0, 1, choose_device(config.run.device))
    configure_backends(config.run, process.device)
    precision = choose_precision(config.run.precision, process.device)
    memory_format = torch.channels_last if config.run.channels_last else torch.contiguous_format
    network.to(device=process.device, memory_format=memory_format)  # type: ignore[call-overload]
    if calibration is not None:
        images = loading.calibration_batches(
            config, calibration, process, precision.image_dtype, trained.epoch or 0
        )
        use_statistics(network, estimate_statistics(network, [network.full], images, precision))
        trained = replace(trained, statistics="reestimated", top1=None)
    if validation is not None:
        loader = loading.build_eval_loader(config, validation, process, precision.image_dtype)
        batches = ((each.images, each.targets) for each in loader)
        trained = replace(trained, top1=evaluate(network, [network.full], batches, precision)[0].top1)
        loader.close()
    return trained


def _summary(trained: Trained, form: str, output: Path) -> str:
    parts = [
        f"{output}: {trained.config.model.name}",
        f"{','.join(map(str, trained.depths))} blocks",
        f"{trained.outputs} classes",
        f"batch-norm statistics {trained.statistics}",
    ]
    if form == "onnx":
        parts.append(f"ONNX opset {ONNX_OPSET}")
    if trained.top1 is not None:
        parts.append(f"Top-1 {trained.top1:.3f} %")
    return ", ".join(parts)
