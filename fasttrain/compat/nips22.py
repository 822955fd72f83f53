"""One training step as the published NIPS22-ST `train.py` does it, under that script's own flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from ..config import IMAGENET_MEAN, IMAGENET_STD, Method
from ..errors import ConfigError
from ..methods import Stimulative
from ..models import StagedNetwork
from ..subnets import Draw, ordered_subnet

_SUPERVISION = {"default": "kl", "CE": "ce_teacher", "CE_target": "ce_target", "DKD": "dkd", "MSE": "mse"}


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
    sizes: Sequence[int],
    epoch: int = 0,
    epochs: int = 200,
) -> Replay:
    """Forward and backward of one step with recorded draws; leaves the gradients in `.grad`.

    Runs through the same method and loss as training does, with `subnet_inputs` cascaded or full.

    Args:
        argv: flags of the published `train.py` that bear on a step.
        model: a network in training mode, gradients cleared.
        images: normalized images [B, 3, H, W].
        targets: class indices, int64 [B].
        depths: blocks kept per stage, of each subnet in order of its draw.
        sizes: side of each subnet's input under --Snet_Dtrans, else empty.
        epoch: counted from 0, for --kl_cos, --kl_rcos and --sampling_begin_epoch.
        epochs: of the whole run.

    Raises:
        ConfigError: an unknown flag, or draws that do not fit the flags.
    """
    flags = _parse(argv)
    options = _method(flags)
    if len(depths) != options.subnets or len(sizes) != (options.subnets if flags.Snet_Dtrans else 0):
        raise ConfigError(
            f"{len(depths)} subnets and {len(sizes)} sizes given; the flags draw {options.subnets} subnets"
            f"{', each with a size' if flags.Snet_Dtrans else ' and no sizes'}"
        )
    method = Stimulative(
        options, model.full, model.depths, seed=0, epochs=epochs, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    draw = Draw()
    if epoch >= options.start_epoch:
        subnets = tuple(ordered_subnet([int(depth) for depth in kept]) for kept in depths)
        draw = Draw(subnets, (1.0,) * len(subnets), tuple(int(size) for size in sizes))
    plan = method.assemble(images, (), draw, epoch=epoch)
    logits = model.forward_trees(plan.inputs, plan.trees)
    loss = method.loss(logits, plan, targets)
    loss.total.backward()
    subnet_logits = tuple(logits[tree][position].detach() for tree, position in plan.places)
    return Replay(logits[0][0].detach(), subnet_logits, loss.main, loss.subnets)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"published flags: {message}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--kl_coef", type=float, default=1.0)
    parser.add_argument("--main_coef", type=float, default=1.0)
    parser.add_argument("--kl_cos", action="store_true")
    parser.add_argument("--kl_rcos", action="store_true")
    parser.add_argument("--sampling_begin_epoch", type=int, default=0)
    parser.add_argument("--multi_Snet", type=int, default=1)
    parser.add_argument("--st_loss", choices=tuple(_SUPERVISION), default="default")
    parser.add_argument("--norm_kd", action="store_true")
    parser.add_argument("--norm_kd_type", choices=("default", "v2"), default="default")
    parser.add_argument("--amplitude", type=float, default=1.0)
    parser.add_argument("--Temp", type=float, default=1.0)
    parser.add_argument("--Snet_Dtrans", action="store_true")
    parser.add_argument("--Dtrans", choices=("Dtrans7",), default="Dtrans7")
    parser.add_argument("--train_crop_size", type=int, default=224)
    parser.add_argument("--mini_size", type=float, default=0.43)
    parser.add_argument(
        "--sample_space", choices=("default", *(f"space{i}" for i in range(1, 8))), default="default"
    )
    return parser.parse_args(list(argv))


def _method(flags: argparse.Namespace) -> Method:
    """The configuration that a step under these flags amounts to."""
    smallest = int(flags.train_crop_size * flags.mini_size)
    schedule: Any = "cosine_up" if flags.kl_cos else "cosine_down" if flags.kl_rcos else "constant"
    normalization: Any = {"default": "layer_norm", "v2": "l2"}[flags.norm_kd_type]
    return Method(
        name="stimulative",
        subnets=flags.multi_Snet,
        space=flags.sample_space,
        subnet_inputs="cascaded" if flags.Snet_Dtrans else "full",
        sizes=tuple(range(smallest, flags.train_crop_size + 1)) if flags.Snet_Dtrans else (),
        supervision=_SUPERVISION[flags.st_loss],  # type: ignore[arg-type]
        normalize=normalization if flags.norm_kd else "none",
        amplitude=flags.amplitude,
        temperature=flags.Temp,
        main_weight=flags.main_coef,
        kl_weight=flags.kl_coef,
        kl_schedule=schedule,
        start_epoch=flags.sampling_begin_epoch,
    )
