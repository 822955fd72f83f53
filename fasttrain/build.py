"""The network and the training step of a run, built from its configuration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from timm.layers import convert_sync_batchnorm

from . import distributed
from .checkpoint import load_weights
from .config import Config, Method
from .distributed import Process
from .errors import CheckpointError, ConfigError
from .guards.finite import OVERFLOWS, LateCheck, StatisticsGuard
from .hardware import Precision, choose_batch_norm, choose_conv1x1, choose_kernels, choose_precision
from .kernels.normalized_loss import IN_TRITON
from .kernels.runtime import Kernels
from .methods import AUXILIARY, build_method
from .methods.augsub import hidden_of, squares_of
from .mixing import build_mixing
from .models import (
    Auxiliary,
    AuxiliaryClassifiers,
    StagedNetwork,
    build_classifiers,
    create_model,
    fuse_batch_norms,
    fuse_convolutions,
    set_drop_path,
)
from .optim import build_ema, build_optimizer, build_schedule, parameter_groups
from .passes import check_passes
from .step import TrainStep
from .subnets import OrderedSpace, Subnet, ordered_space, sample_distinct, sampling_space


def build_network(config: Config, classes: int, device: torch.device, world: int = 0) -> StagedNetwork:
    """The network on its device, initialized from the seed or from given weights, fused as asked.

    Args:
        config: of the run.
        classes: of the training images.
        device: where it will be.
        world: processes that share each batch; 0: those of the process group.

    Raises:
        ConfigError: an unknown name, images smaller than the network allows, or an implementation of batch
            norm or 1x1 convolutions that does not run here.
        CheckpointError: weights that cannot be read or do not fit.
    """
    torch.manual_seed(config.run.seed)
    network = create_model(config.model.name, config.data.num_classes or classes)
    set_drop_path(network, config.model.drop_path)
    _check_sides(config, network)
    _check_mask(config, network)
    check_passes(config, world or distributed.processes())
    _take_weights(config, network)
    memory_format = torch.channels_last if config.run.channels_last else torch.contiguous_format
    network = network.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    _fuse(config, network, device)
    return convert_sync_batchnorm(network) if config.run.sync_batch_norm else network


def _check_sides(config: Config, network: StagedNetwork) -> None:
    """Whether the network takes images of all sides that may be drawn."""
    resizes = config.method.main_resizes
    ranges = [range(low, high + 1) for low, high in zip(resizes[::2], resizes[1::2], strict=True)]
    sides: dict[str, Sequence[int]] = {
        "data.crop": (config.data.crop,),
        "data.val_crop": (config.data.val_crop,),
        "the least of method.sizes": sorted(config.method.sizes),
        "the least of method.main_resizes": sorted(itertools.chain(*ranges)),
    }
    for name, given in sides.items():
        if given and given[0] < network.reduction:
            raise ConfigError(
                f"{name} is {given[0]}; allowed: at least {network.reduction} pixels for {config.model.name}"
            )
        network.check_sides(name.removeprefix("the least of "), given)


def _check_mask(config: Config, network: StagedNetwork) -> None:
    """A masked square is smaller than the image; one of them at least is hidden, and one is not."""
    method, crop = config.method, config.data.crop
    if method.name != "augsub" or method.drop != "masking":
        return
    side = network.mask_square or method.mask_square
    if side >= crop:
        raise ConfigError(
            f"method.mask_square is {side}; allowed: below data.crop = {crop} (published: a seventh)"
        )
    count = squares_of(crop, crop, side)
    hidden = hidden_of(count, method.drop_ratio, rounds_up=network.mask_rounds_up)
    if not 0 < hidden < count:
        allowed = f"at most {count - 1}/{count}" if hidden else f"1/{count} or more"
        raise ConfigError(
            f"method.drop_ratio is {method.drop_ratio:g}; allowed: {allowed}, since images of {crop} "
            f"pixels have {count} squares of {side}"
        )


def _take_weights(config: Config, network: StagedNetwork) -> None:
    """Start from `model.weights`, if given; `model.new_head` leaves the classifier as it is initialized."""
    if not config.model.weights:
        if config.model.new_head:
            raise ConfigError(
                "model.new_head is True and model.weights is empty; allowed: a state dict's file "
                "(--model.weights FILE)"
            )
        return
    classifier = network.classifier_names
    try:
        network.origin = load_weights(
            network, Path(config.model.weights), keep=classifier if config.model.new_head else ()
        )
    except CheckpointError as error:
        if any(f": {name} has shape" in str(error) for name in classifier):
            raise CheckpointError(f"{error}; for other classes: --model.new-head") from None
        raise


def _fuse(config: Config, network: StagedNetwork, device: torch.device) -> None:
    precision = choose_precision(config.run.precision, device)
    batch_norm = choose_batch_norm(config.model.batch_norm, device, precision, config.run.channels_last)
    if config.run.sync_batch_norm:
        batch_norm = _check_sync(config, device)
    method = config.method
    drops = method.name == "stochastic_depth" or (method.name == "augsub" and method.drop == "path")
    if batch_norm == "apex" and drops:
        raise ConfigError(
            f"model.batch_norm is 'apex' with method.name {method.name!r}, which drops residual branches; "
            "allowed: auto, triton, reference, torch (apex adds the residual before a branch can be dropped)"
        )
    conv1x1 = choose_conv1x1(config.model.conv1x1, batch_norm)
    fused = batch_norm != "torch" and fuse_batch_norms(network, batch_norm)
    if config.model.batch_norm not in ("auto", "torch") and not fused:
        raise ConfigError(
            f"model.batch_norm is {batch_norm!r}; allowed for {config.model.name}, none of whose batch norms "
            "can be fused: auto, torch"
        )
    if conv1x1 != "torch" and not fuse_convolutions(network):
        raise ConfigError(
            f"model.conv1x1 is {conv1x1!r}; allowed for {config.model.name}, which has no plain bottlenecks: "
            "torch"
        )


def _check_sync(config: Config, device: torch.device) -> str:
    """The implementation of batch norm where all processes share its statistics: torch's, on a GPU."""
    if device.type != "cuda":
        raise ConfigError("run.sync_batch_norm is True; allowed on a CPU: False (torch has it on GPUs alone)")
    if config.model.batch_norm not in ("auto", "torch"):
        raise ConfigError(
            f"run.sync_batch_norm is True with model.batch_norm {config.model.batch_norm!r}; allowed: "
            "auto, torch"
        )
    return "torch"


def loss_kernels(config: Config, device: torch.device) -> Kernels:
    """The implementation of the loss: `run.kernels`, where the method's loss has kernels.

    Raises:
        ConfigError: Triton asked for where it does not run, or for a loss without kernels.
    """
    lacking = _without_kernels(config.method)
    if not lacking:
        return choose_kernels(config.run.kernels, device)
    if config.run.kernels == "triton":
        raise ConfigError(
            f"run.kernels is 'triton' with {lacking}; allowed: auto, reference, or main_loss ce and "
            f"supervision {', '.join(IN_TRITON)} without method.ensemble and method.scale_by_teacher"
        )
    return "reference"


def _without_kernels(method: Method) -> str:
    """The option that the loss's kernels lack; empty: they have all that the method asks for."""
    if method.main_loss != "ce":
        return f"method.main_loss {method.main_loss!r}"
    if method.name != "stimulative":
        return ""
    if method.supervision not in IN_TRITON:
        return f"method.supervision {method.supervision!r}"
    if method.ensemble:
        return f"method.ensemble {method.ensemble:g}"
    return "method.scale_by_teacher True" if method.scale_by_teacher else ""


def build_step(
    config: Config,
    network: StagedNetwork,
    process: Process,
    precision: Precision,
    steps_per_epoch: int,
) -> TrainStep:
    """The training step.

    Raises:
        ConfigError: a method, a sampling space or a kind of drop that does not fit the network, or an
            implementation of the loss or the optimizer that does not run here.
    """
    if config.method.supervision == "dkd" and network.num_classes < 2:
        raise ConfigError("method.supervision is 'dkd' with 1 class; allowed: 2 or more, or kl")
    joint = config.method.backward == "joint"
    with precision.autocast():
        auxiliary = build_auxiliary(config, network)
    if auxiliary is not None and config.run.sync_batch_norm:
        auxiliary = convert_sync_batchnorm(auxiliary)
    classifiers = len(auxiliary.refs) if isinstance(auxiliary, AuxiliaryClassifiers) else 0
    method = build_method(config, network, loss_kernels(config, process.device), process.rank, classifiers)
    compression = config.run.gradient_compression
    fp16 = precision.name == "fp16"
    forward = distributed.wrap(network, process, auxiliary=auxiliary, joint=joint, compression=compression)
    return TrainStep(
        forward=forward,
        method=method,
        optimizer=build_optimizer(
            parameter_groups(forward, network, config.optim), config.optim, process.device
        ),
        schedule=build_schedule(config.optim, config.run.epochs, steps_per_epoch),
        precision=precision,
        scaler=torch.amp.GradScaler(process.device.type, enabled=fp16),
        clip=config.optim.clip,
        ema=build_ema(network, config.optim.ema),
        mixing=build_mixing(config.data, network.num_classes, config.run.seed),
        reduce=None if joint else distributed.average_gradients,
        check=LateCheck(config.run.skip_nonfinite, OVERFLOWS if fp16 else 0),
        accumulate=config.run.accumulate,
        guard=StatisticsGuard(forward) if config.run.skip_nonfinite or fp16 else None,
    )


def build_auxiliary(config: Config, network: StagedNetwork) -> Auxiliary | None:
    """What the method trains besides the network, from the run's seed; None: nothing.

    Raises:
        ConfigError: a network whose blocks cannot have the method's classifiers.
    """
    method = config.method
    masks = method.name == "augsub" and method.drop == "masking"
    if method.name not in AUXILIARY and not masks:
        return None
    torch.manual_seed(config.run.seed)
    if not masks:
        return build_classifiers(network, AUXILIARY[method.name], config.data.crop)
    token, like = network.mask_token(), next(network.parameters())
    return None if token is None else token.to(device=like.device, dtype=like.dtype)


def subnets_to_evaluate(config: Config, network: StagedNetwork, count: int) -> list[Subnet]:
    """`count` subnets of the sampling space, -1 for all of it; raw sampling is judged by ordered subnets.

    Raises:
        ConfigError: all of a space too large to walk.
    """
    method = config.method
    if method.sampling == "raw":
        space = ordered_space("default", network.depths)
    else:
        space = sampling_space(  # type: ignore[assignment]
            method.sampling, method.space, network.depths, network.without_shortcut
        )
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
