"""One training step as the published NIPS22-ST `train.py` does it, under that script's own flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...config import IMAGENET_MEAN, IMAGENET_STD, Method
from ...errors import ConfigError
from ...methods import Stimulative
from ...models import StagedNetwork
from ...subnets import Draw, Window, ordered_subnet
from .config import to_method
from .flags import parse


@dataclass(frozen=True, slots=True)
class Replay:
    """What one step of the published code computes, before its optimizer.

    Attributes:
        main_logits: the main network's raw logits [B, C].
        subnet_logits: each subnet's raw logits [B, C].
        main_loss: the cross-entropy that the published code logs.
        subnet_losses: each subnet's loss before its weight [K]; the published log shows the last.
    """

    main_logits: Tensor
    subnet_logits: tuple[Tensor, ...]
    main_loss: Tensor
    subnet_losses: Tensor


def replay(
    argv: Sequence[str],
    model: StagedNetwork,
    images: Tensor,
    targets: Tensor,
    *,
    depths: Sequence[Sequence[int]],
    sizes: Sequence[int] = (),
    main_sizes: Sequence[int] = (),
    windows: Sequence[Sequence[int]] = (),
    epoch: int = 0,
) -> Replay:
    """Forward and backward of one step with recorded draws; leaves the gradients in `.grad`.

    Runs through the same method and loss as training does.

    Args:
        argv: flags of the published `train.py`.
        model: a network in training mode, gradients cleared.
        images: normalized images [B, 3, H, W].
        targets: class indices, int64 [B], or probabilities [B, C].
        depths: blocks kept per stage, of each subnet in order of its draw; none before its first epoch.
        sizes: side of each subnet's input under --Snet_Dtrans, else empty.
        main_sizes: sides drawn for --max_size and --same_mscale_image, in this order.
        windows: what Dtrans15 crops for each subnet: top, left, height, width, pixels of the input before.
        epoch: counted from 0, for --kl_cos, --kl_rcos and --sampling_begin_epoch.

    Raises:
        ConfigError: an unknown flag, or draws that do not fit the flags.
    """
    flags = parse(argv).flags
    options = to_method(flags)
    if options.name == "common":
        options = Method(subnets=0)
    if epoch >= flags.epoch:
        raise ConfigError(f"epoch is {epoch}; allowed: 0 to {flags.epoch - 1}, as --epoch says")
    subnets = tuple(ordered_subnet([int(depth) for depth in kept]) for kept in depths)
    draw = Draw(
        subnets,
        (1.0,) * len(subnets),
        tuple(int(size) for size in sizes),
        tuple(int(size) for size in main_sizes),
        tuple(Window(*map(int, window)) for window in windows),
    )
    _check(draw, options, epoch)
    method = Stimulative(
        options, model.full, model.depths, seed=0, epochs=flags.epoch, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    plan = method.assemble(images, (), draw, epoch=epoch)
    logits = model.forward_trees(plan.inputs, plan.trees)
    loss = method.loss(logits, plan, targets)
    loss.total.backward()
    subnet_logits = tuple(logits[tree][position].detach() for tree, position in plan.places)
    return Replay(logits[0][0].detach(), subnet_logits, loss.main, loss.subnets)


def _check(draw: Draw, options: Method, epoch: int) -> None:
    """Raise ConfigError for draws of other numbers than the flags ask for."""
    subnets = options.subnets if epoch >= options.start_epoch else 0
    cascaded = options.subnet_inputs == "cascaded"
    for name, given, due in (
        ("depths", draw.subnets, subnets),
        ("sizes", draw.sizes, subnets if cascaded else 0),
        ("main_sizes", draw.main_sizes, len(options.main_resizes) // 2),
        ("windows", draw.windows, subnets if options.cascade == "crop" else 0),
    ):
        if len(given) != due:
            raise ConfigError(f"{len(given)} {name} given; allowed: the {due} that the flags draw")
