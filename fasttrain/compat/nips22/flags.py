"""The flags of the published `train.py`: names, defaults, values, and what each really does there."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from ...arguments import Parser


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """The published table of flags, with its defaults. Switches take no value there.

    The published names and meanings are kept; `CHOICES` has the values of those that take a word.
    """

    depth: int = 50
    """Layers of the ResNet."""
    epoch: int = 200
    """Epochs, also those of the cosine schedules."""
    sampling_begin_epoch: int = 0
    """First epoch with subnets."""
    same_mscale_image: bool = False
    """A smaller input for main network and subnets, of mini_size * crop to crop pixels, normalized again."""
    st_loss: str = "default"
    """What subnets learn from: KL, cross-entropy to the main output or to the target, DKD, squared error."""
    exp: str = "ut_1_1_50"
    """Folder of the log and the checkpoints."""
    kl_coef: float = 1.0
    """Weight of each subnet's loss."""
    main_coef: float = 1.0
    """Weight of the main cross-entropy."""
    UT: bool = True
    """Train the subnets; always on, since its default is."""
    kl_cos: bool = False
    """The subnets' weight rises from 0 over the epochs; goes before kl_rcos."""
    kl_rcos: bool = False
    """The subnets' weight falls to 0 over the epochs."""
    val_tf_bn_reset: bool = False
    """Makes a loader that nothing reads."""
    resume: bool = False
    """Go on from the best checkpoint of --exp."""
    batch_size: int = 512
    """Images per step, over two GPUs; half of it per validation batch."""
    workers: int = 16
    """Processes that decode and augment."""
    lr: float = 0.2
    """Peak learning rate of SGD with Nesterov momentum 0.9; cosine to 0, per step."""
    weight_decay: float = 1e-4
    """On every parameter."""
    multi_Snet: int = 1
    """Subnets per step."""
    norm_kd: bool = False
    """Normalize the logits of main network and subnets before all losses (KL-)."""
    norm_kd_test: bool = False
    """Layer-normalize the logits before the validation loss; the accuracy stays."""
    amplitude: float = 1.0
    """Factor on normalized logits, but with v1."""
    Temp: float = 1.0
    """Temperature of the KL."""
    norm_kd_type: str = "default"
    """Layer norm; it, with the KL's logits times the teacher's deviation (also without norm_kd); L2 norm."""
    direct_KD_esm: bool = False
    """The teacher moves to each subnet's layer-normalized output after its turn."""
    direct_KD_ema: float = 0.5
    """By this share."""
    Snet_Dtrans: bool = False
    """Each subnet's input is made from the one before."""
    Dtrans: str = "Dtrans7"
    """How, and of which sides."""
    min_lr: bool = False
    """A floor for the learning rate."""
    min_lr_coef: float = 1e-4
    """Over lr."""
    val_resize_size: int = 256
    """Shorter side of a validation image before its centre crop, pixels."""
    val_crop_size: int = 224
    """Side of the validation crop, pixels."""
    train_crop_size: int = 224
    """Side of the training crop, pixels."""
    mini_size: float = 0.43
    """Least side of smaller inputs (Dtrans7, Dtrans15, same_mscale_image), over the crop."""
    jitter_coef: float = 0.4
    """Brightness, contrast and saturation factors in 1 +- this."""
    light_coef: float = 0.1
    """Standard deviation of the PCA lighting."""
    train_trans: str = "default"
    """What follows crop, flip, jitter and lighting."""
    mix: str = "default"
    """Mixing of each batch, targets included."""
    mixup_alpha: float = 0.2
    """Of mixup's Beta distribution."""
    max_size: float = 1.0
    """Not 1: the whole step's input is resized to a side of crop to max_size * crop and normalized again."""
    sample_space: str = "default"
    """Blocks that subnets keep per stage, with depth 50 alone."""
    no_rebn: bool = False
    """Validate with the running statistics, not re-estimated ones."""


OF_MINI_SIZE = ("Dtrans7", "Dtrans15")
"""Transforms whose least side is a part of the crop."""

MIXUP = ("mixup", "mixup-torch", "mixup-cutmix-torch", "mixup-cutmix-timm")
CUTMIX = ("cutmix", "cutmix-torch", "mixup-cutmix-torch", "mixup-cutmix-timm")
"""Values of --mix that mix by mixup and by CutMix; where both, either has half of the steps."""

CHOICES: dict[str, tuple[str | int, ...]] = {
    "depth": (50, 101, 152),
    "st_loss": ("default", "CE", "CE_target", "DKD", "MSE"),
    "norm_kd_type": ("default", "v1", "v2"),
    "Dtrans": tuple(f"Dtrans{number}" for number in range(4, 16)),
    "train_trans": (
        *("default", "with_TA_torch", "with_TA_torch1", "with_TA", "with_RA_torch", "with_RA"),
        *("with_UA", "with_AA", "with_RE"),
    ),
    "mix": ("default", *CUTMIX[:2], *MIXUP),
    "sample_space": ("default", *(f"space{number}" for number in range(1, 8))),
}
"""The values that the published code tells apart, of the flags that take one of a few."""


class Parsed(NamedTuple):
    """Flags, and which of them were on the command line."""

    flags: Flags
    given: frozenset[str]


def parse(argv: Sequence[str]) -> Parsed:
    """The published flags of a command line.

    Raises:
        ConfigError: an unknown flag, a value of the wrong type, or one that the published code does not tell
            apart, also where it passes silently there.
    """
    parser = new_parser("published flags")
    add_flags(parser)
    values = vars(parser.parse_args(list(argv)))
    return Parsed(Flags(**values), frozenset(values))


def new_parser(name: str) -> Parser:
    """A parser that wants flags in full, and leaves out those that are not given."""
    return Parser(name, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Let a parser take the published flags."""
    for field in fields(Flags):
        name, kind = f"--{field.name}", type(field.default)
        if kind is bool:
            parser.add_argument(name, action="store_true")
        else:
            told = f"{kind.__name__}, {field.default}"
            choices = CHOICES.get(field.name)
            metavar = None if choices else field.name.upper()
            parser.add_argument(name, type=kind, choices=choices, metavar=metavar, help=told)
