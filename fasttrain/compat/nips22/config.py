"""From the published flags to a configuration, and to the `fasttrain train` command that gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...command import command, nearest_recipe
from ...config import Config, Data, Evaluation, Method, Model, Optim, Run
from ...effects import cleared
from ...errors import ConfigError
from ...recipes import RECIPES
from ...recipes.imagenet import as_fast, as_published, rn50_ct_200
from .flags import CUTMIX, MIXUP, OF_MINI_SIZE, Flags, parse
from .notices import notices, scales_by_teacher, trains_subnets

_SUPERVISION: dict[str, Any] = {
    "default": "kl",
    "CE": "ce_teacher",
    "CE_target": "ce_target",
    "DKD": "dkd",
    "MSE": "mse",
}
_NORMALIZATION = {"default": "layer_norm", "v1": "layer_norm", "v2": "l2"}
_RESOS = (128, 160, 192, 224)
"""`resos` of configs/resnet50_randwidth.yml, pixels."""
_SIDES = {
    "Dtrans4": _RESOS,
    "Dtrans5": _RESOS,
    "Dtrans6": range(128, 225),
    "Dtrans8": range(64, 225),
    "Dtrans9": range(96, 257),
    "Dtrans10": range(32, 225),
    "Dtrans11": range(96, 241),
    "Dtrans12": range(80, 225),
    "Dtrans13": range(96, 209),
    "Dtrans14": range(96, 273),
}
"""Sides of the subnets' inputs, pixels; the other transforms' follow the crop."""
_CASCADE = {"Dtrans4": "interpolate", "Dtrans15": "crop"}
"""How an input is made from the one before, if not by `resize`."""
_POLICY: dict[str, dict[str, Any]] = {
    "default": {},
    "with_TA_torch": {"policy": "trivialaugment"},
    "with_TA_torch1": {"policy": "trivialaugment"},
    "with_TA": {"policy": "trivialaugment_standard"},
    "with_RA_torch": {"policy": "randaugment_torchvision"},
    "with_RA": {"policy": "randaugment_standard"},
    "with_UA": {"policy": "uniformaugment_standard"},
    "with_AA": {"policy": "autoaugment"},
    "with_RE": {"erase": 0.5},
}
_ONE_AT_9_OF_30 = {"policy_operations": 1, "policy_magnitude": 3.0, "policy_deviation": 0.0}


@dataclass(frozen=True, slots=True)
class Equivalent:
    """What published flags amount to here.

    Attributes:
        config: the configuration.
        words: what follows `fasttrain train` in the command that gives it.
        notices: a line for each flag that changes nothing, and for each difference of behaviour.
    """

    config: Config
    words: list[str]
    notices: list[str]


def equivalent(argv: Sequence[str], data: str = "", *, fast: bool = False) -> Equivalent:
    """What published flags amount to.

    Args:
        argv: flags of the published `train.py`.
        data: the folder that holds train/ and val/; empty: none yet.
        fast: take this project's fast modes, not those of the published code.

    Raises:
        ConfigError: an unknown flag or value, or one that cannot be honoured.
    """
    parsed = parse(argv)
    told = list(notices(parsed))
    config = to_config(parsed.flags)
    if data:
        train, val = (str(Path(data, name)) for name in ("train", "val"))
        config = replace(config, data=replace(config.data, train=train, val=val))
    if fast:
        told += _kept_from_fast(config)
        config = as_fast(config)
    config = cleared(config)  # the published code takes flags that nothing reads
    base = nearest_recipe(config, [name for name in RECIPES if name.endswith("-published") != fast])
    return Equivalent(replace(config, recipe=base), command(config, base), told)


def to_config(flags: Flags) -> Config:
    """The configuration that does what the published code does under these flags.

    Raises:
        ConfigError: a combination that cannot be honoured.
    """
    try:
        config = replace(
            rn50_ct_200(),
            data=_data(flags),
            model=Model(name=f"resnet{flags.depth}"),
            method=to_method(flags),
            optim=_optim(flags),
            evaluation=_evaluation(flags),
            run=_run(flags),
        )
        config = as_published(config)
    except ConfigError as error:
        raise ConfigError(f"published flags that amount to what is refused: {error}") from None
    evaluation = replace(config.evaluation, reestimate=not flags.no_rebn)
    data = replace(config.data, drop_last=flags.mix == "mixup-cutmix-timm")  # its loader alone does
    return replace(config, data=data, evaluation=evaluation)


def to_method(flags: Flags) -> Method:
    """The method of a step under these flags.

    Raises:
        ConfigError: a value out of its range.
    """
    resizes = _main_resizes(flags)
    if not trains_subnets(flags):
        if not flags.norm_kd and not resizes and flags.main_coef == 1:
            return Method(name="common")
        return replace(_stimulative(flags, resizes), subnets=0)
    method = replace(
        _stimulative(flags, resizes),
        subnets=flags.multi_Snet,
        space=flags.sample_space if flags.depth == 50 else "default",
        supervision=_SUPERVISION[flags.st_loss],
        scale_by_teacher=scales_by_teacher(flags),
        ensemble=flags.direct_KD_ema if flags.direct_KD_esm else 0.0,
        temperature=flags.Temp if flags.st_loss == "default" else 1.0,
        kl_weight=flags.kl_coef,
        kl_schedule="cosine_up" if flags.kl_cos else "cosine_down" if flags.kl_rcos else "constant",
        start_epoch=max(0, flags.sampling_begin_epoch),
    )
    if not flags.Snet_Dtrans:
        return method
    sizes = tuple(_smaller_sides(flags) if flags.Dtrans in OF_MINI_SIZE else _SIDES[flags.Dtrans])
    cascade: Any = _CASCADE.get(flags.Dtrans, "resize")
    return replace(method, subnet_inputs="cascaded", sizes=sizes, cascade=cascade)


def _stimulative(flags: Flags, resizes: tuple[int, ...]) -> Method:
    """What bears on the main network."""
    normalize: Any = _NORMALIZATION[flags.norm_kd_type] if flags.norm_kd else "none"
    return Method(
        name="stimulative",
        normalize=normalize,
        amplitude=flags.amplitude if flags.norm_kd and flags.norm_kd_type != "v1" else 1.0,
        main_weight=flags.main_coef,
        main_resizes=resizes,
    )


def _main_resizes(flags: Flags) -> tuple[int, ...]:
    """The sides that the main network's images are drawn from, in pairs."""
    pairs: list[int] = []
    if flags.max_size != 1:
        _check("max_size", flags.max_size, 1, 16)
        pairs += flags.train_crop_size, int(flags.train_crop_size * flags.max_size)
    if flags.same_mscale_image:
        smaller = _smaller_sides(flags)
        pairs += smaller.start, smaller.stop - 1
    return tuple(pairs)


def _smaller_sides(flags: Flags) -> range:
    _check("mini_size", flags.mini_size, 0, 1)
    return range(int(flags.train_crop_size * flags.mini_size), flags.train_crop_size + 1)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"--{name} is {value:g}; allowed: {low:g} to {high:g}")


def _data(flags: Flags) -> Data:
    if flags.mix in MIXUP[:-1] and flags.mixup_alpha <= 0:  # timm's then mixes by CutMix alone
        raise ConfigError(f"--mixup_alpha is {flags.mixup_alpha:g}; allowed: above 0 with --mix {flags.mix}")
    _check("workers", flags.workers, 0, 1024)
    policy = dict(_POLICY[flags.train_trans])
    if "policy" in policy:
        policy |= {"policy_last": True, "policy_fill": 0}
    if flags.train_trans in ("with_RA_torch", "with_RA"):
        policy |= _ONE_AT_9_OF_30
    return replace(
        rn50_ct_200().data,
        crop=flags.train_crop_size,
        jitter=flags.jitter_coef,
        lighting=flags.light_coef,
        published_lighting=True,
        val_resize=flags.val_resize_size,
        val_crop=flags.val_crop_size,
        mixup=flags.mixup_alpha if flags.mix in MIXUP else 0.0,
        cutmix=1.0 if flags.mix in CUTMIX else 0.0,
        threads=0 if flags.workers == Flags().workers else max(1, flags.workers),
        **policy,
    )


def _optim(flags: Flags) -> Optim:
    return replace(
        rn50_ct_200().optim,
        lr=flags.lr,
        weight_decay=flags.weight_decay,
        min_lr=flags.lr * flags.min_lr_coef if flags.min_lr else 0.0,
    )


def _evaluation(flags: Flags) -> Evaluation:
    normalize: Any = "layer_norm" if flags.norm_kd_test else "none"
    return Evaluation(batch=max(1, flags.batch_size // 2), normalize=normalize)


def _run(flags: Flags) -> Run:
    folder = Path(flags.exp)
    if not folder.name:
        raise ConfigError(f"--exp is {flags.exp!r}; allowed: the run's name, or a path that ends in it")
    return Run(
        name=folder.name,
        folder=str(folder.parent) if len(folder.parts) > 1 else Run().folder,
        epochs=flags.epoch,
        batch=flags.batch_size,
        resume="auto" if flags.resume else "never",
    )


def _kept_from_fast(config: Config) -> list[str]:
    """What `as_fast` cannot do, or does otherwise."""
    method, crop = config.method, config.data.crop
    if method.subnet_inputs != "cascaded":
        return []
    if method.cascade == "crop":
        return ["--fast leaves the inputs of Dtrans15 as they are: cropped from each other"]
    if max(method.sizes) > crop:
        return [f"--fast leaves out the subnets' inputs above the crop of {crop}: nothing is scaled up"]
    return []
