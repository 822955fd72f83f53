"""Messages about fields of a configuration, said of the published flags."""

from __future__ import annotations

import re

from ...config import Config, to_dict
from ...errors import RunError

FLAGS = {
    "data.train": "--data",
    "data.val": "--data",
    "data.crop": "--train_crop_size",
    "data.val_crop": "--val_crop_size",
    "data.val_resize": "--val_resize_size",
    "data.jitter": "--jitter_coef",
    "data.lighting": "--light_coef",
    "data.policy": "--train_trans",
    "data.mixup": "--mixup_alpha",
    "data.cutmix": "--mix",
    "data.threads": "--workers",
    "model.name": "--depth",
    "method.subnets": "--multi_Snet",
    "method.space": "--sample_space",
    "method.sizes": "--Dtrans",
    "method.main_resizes": "--max_size",
    "method.supervision": "--st_loss",
    "method.ensemble": "--direct_KD_ema",
    "method.normalize": "--norm_kd_type",
    "method.amplitude": "--amplitude",
    "method.temperature": "--Temp",
    "method.main_weight": "--main_coef",
    "method.kl_weight": "--kl_coef",
    "method.start_epoch": "--sampling_begin_epoch",
    "optim.lr": "--lr",
    "optim.weight_decay": "--weight_decay",
    "optim.min_lr": "--min_lr_coef",
    "evaluation.batch": "half of --batch_size",
    "run.name": "--exp",
    "run.folder": "--exp",
    "run.epochs": "--epoch",
    "run.batch": "--batch_size",
    "run.resume": "--resume",
}
"""Field to the flag that sets it."""

_FIELDS = {f"{section}.{name}" for section, values in to_dict(Config()).items() if values for name in values}


def in_flags(error: RunError) -> RunError:
    """The error, with the flags named that set its fields."""
    others: list[str] = []

    def flag(found: re.Match[str]) -> str:
        field = found[1].replace("-", "_")
        if field in _FIELDS - set(FLAGS):
            others.append(field)
        return FLAGS.get(field, found[0])

    text = str(error).replace("run.resume is 'never'", "--resume is not given")
    text = text.replace("--run.resume auto", "--resume")
    text = re.sub(r"(?:--)?\b([a-z]+\.[a-z][a-z_-]*[a-z])\b", flag, text)
    if others:
        text += f" ({', '.join(others)}: of the fasttrain train command that --print-command prints)"
    same = type(error)(text)
    same.speaks = error.speaks
    return same
