"""What users of the published flags should be told: flags without effect, and what is done otherwise."""

from __future__ import annotations

from collections.abc import Iterator

from .flags import MIXUP, OF_MINI_SIZE, Flags, Parsed

_OF_SUBNETS = (
    *("kl_cos", "kl_rcos", "st_loss", "Temp", "direct_KD_esm", "direct_KD_ema", "Snet_Dtrans", "Dtrans"),
    *("sample_space", "kl_coef", "multi_Snet", "sampling_begin_epoch"),
)
"""Flags that bear on subnets alone."""


def trains_subnets(flags: Flags) -> bool:
    """Whether a subnet ever gets a weight."""
    return not _without_subnets(flags)


def scales_by_teacher(flags: Flags) -> bool:
    """Whether the KL's logits are multiplied by the teacher's deviation."""
    return flags.norm_kd_type == "v1" and flags.st_loss == "default" and trains_subnets(flags)


def notices(parsed: Parsed) -> Iterator[str]:
    """A line for each flag on the command line that changes nothing, and for each difference of behaviour."""
    flags, given = parsed
    idle = {name: why for name, (holds, why) in _idle(flags).items() if holds}
    causes = _without_subnets(flags)
    if causes:
        idle |= {name: "no subnet is trained" for name in _OF_SUBNETS if name not in causes}
    for name in sorted(given & set(idle)):
        yield f"--{name} changes nothing: {idle[name]}"
    yield from (line for holds, line in _differences(flags) if holds)


def _without_subnets(flags: Flags) -> list[str]:
    """The flags by which no subnet is trained."""
    causes = {
        "kl_coef": flags.kl_coef == 0,
        "multi_Snet": flags.multi_Snet == 0,
        "sampling_begin_epoch": flags.sampling_begin_epoch >= flags.epoch,
    }
    return [name for name, holds in causes.items() if holds]


def _idle(flags: Flags) -> dict[str, tuple[bool, str]]:
    """When a flag changes nothing in the published code, and why."""
    v1 = flags.norm_kd_type == "v1"
    sides_follow_crop = flags.same_mscale_image or (flags.Snet_Dtrans and flags.Dtrans in OF_MINI_SIZE)
    return {
        "UT": (True, "it is always on"),
        "val_tf_bn_reset": (True, "nothing reads the loader that it makes"),
        "kl_rcos": (flags.kl_cos, "--kl_cos goes before it"),
        "amplitude": (not flags.norm_kd or v1, "only --norm_kd with --norm_kd_type default or v2 reads it"),
        "norm_kd_type": (
            not flags.norm_kd and not scales_by_teacher(flags),
            "only --norm_kd reads it, and v1 the KL",
        ),
        "Temp": (flags.st_loss != "default", f"--st_loss {flags.st_loss} does not read it"),
        "direct_KD_esm": (
            flags.st_loss == "CE_target" or flags.multi_Snet == 1,
            "no later subnet learns from the teacher",
        ),
        "direct_KD_ema": (not flags.direct_KD_esm, "only --direct_KD_esm reads it"),
        "Dtrans": (not flags.Snet_Dtrans, "only --Snet_Dtrans reads it"),
        "mini_size": (
            not sides_follow_crop,
            f"only --same_mscale_image and --Dtrans {' and '.join(OF_MINI_SIZE)} read it",
        ),
        "min_lr_coef": (not flags.min_lr, "only --min_lr reads it"),
        "mixup_alpha": (flags.mix not in MIXUP, f"--mix {flags.mix} does not read it"),
        "sample_space": (flags.depth != 50, f"of depth {flags.depth} every number of blocks is drawn"),
    }


def _differences(flags: Flags) -> tuple[tuple[bool, str], ...]:
    """When something is done otherwise here than there, and what."""
    return (
        (flags.resume, "--resume goes on from the newest checkpoint, not from the best one"),
        (
            flags.kl_coef == 0 and flags.multi_Snet != 0,
            "subnets of weight 0 are left out: the gradients are the same",
        ),
        (
            flags.mix.endswith(("-torch", "-timm")),
            f"--mix {flags.mix} imports a file that the repository has deleted: done as its history has it",
        ),
        (
            flags.no_rebn and _without_subnets(flags) in ([], ["kl_coef"]),
            "running batch-norm statistics are the main network's alone; there the subnets' passes enter too",
        ),
        (
            flags.train_trans not in ("default", "with_RE"),
            "warped images are interpolated linearly; there each pixel is the nearest one's",
        ),
        (
            flags.train_trans == "with_RE",
            "erased boxes take up to 1/3 of the image, at ratios up to 10/3; there 0.33 and 3.3",
        ),
        (
            flags.mix != "default",
            "images are mixed in pairs of neighbours; there each with the one before it (timm's: with "
            "the batch reversed)",
        ),
    )
