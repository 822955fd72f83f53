"""What both implementations of the stimulative loss refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Supervision = Literal["kl", "ce_teacher", "ce_target", "dkd", "mse", "bce_teacher"]
Normalization = Literal["layer_norm", "l2", "none"]
MainLoss = Literal["ce", "bce"]

_LARGEST = 1e9  # far from float32's bounds
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Options(NamedTuple):
    """What the loss is, apart from its tensors and the subnets' weights; see `stimulative_loss`."""

    supervision: Supervision
    normalize: Normalization
    normalize_main: bool
    amplitude: float
    temperature: float
    main_weight: float
    label_smoothing: float

    def check(self) -> None:
        """Raise ValueError for what is not allowed."""
        for name, allowed in (("supervision", Supervision), ("normalize", Normalization)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; allowed: {', '.join(get_args(allowed))}"
                )
        for name in ("amplitude", "temperature"):
            if not 0 < getattr(self, name) <= _LARGEST:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: above 0, at most {_LARGEST:g}")
        check_weight("main_weight", self.main_weight)
        check_share("label_smoothing", self.label_smoothing)


def check_share(name: str, share: float) -> None:
    """Raise ValueError for what is no part of a whole."""
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is {share}; allowed: 0 to 1")


def check_weight(name: str, weight: float) -> None:
    """Raise ValueError for what no loss can be multiplied by."""
    if not abs(weight) <= _LARGEST:
        raise ValueError(f"{name} is {weight}; allowed: -{_LARGEST:g} to {_LARGEST:g}")


def check_tensors(
    main: Tensor,
    subnets: Sequence[Tensor] | Tensor,
    targets: Tensor,
    weights: Sequence[float],
    supervision: Supervision,
    *,
    check_targets: bool,
) -> None:
    """Raise ValueError for tensors that do not fit each other or the supervision.

    Class indices are looked at on a CPU, and elsewhere if `check_targets`, since that waits for the device.
    """
    if main.ndim != 2 or 0 in main.shape:
        raise ValueError(f"main logits have shape {tuple(main.shape)}; allowed: [B, C], B and C at least 1")
    if main.dtype not in _DTYPES:
        raise ValueError(f"main logits are {main.dtype}; allowed: {', '.join(map(str, _DTYPES))}")
    if len(weights) != len(subnets):
        raise ValueError(f"{len(weights)} weights for {len(subnets)} subnets")
    for weight in weights:
        check_weight("a weight", weight)
    for logits in subnets[:1] if isinstance(subnets, Tensor) else subnets:  # of a stack, one stands for all
        _check_subnet(logits, main)
    _check_targets(main, targets, look=check_targets or targets.device.type == "cpu")
    if supervision == "dkd" and (targets.ndim != 1 or main.shape[1] < 2):
        raise ValueError(
            f"supervision is 'dkd', targets have shape {tuple(targets.shape)}, logits {tuple(main.shape)}; "
            "allowed: class indices, int64 [B], of 2 or more classes"
        )


def _check_subnet(logits: Tensor, main: Tensor) -> None:
    if logits.shape != main.shape:
        raise ValueError(
            f"subnet logits have shape {tuple(logits.shape)}; the main network's are {tuple(main.shape)}"
        )
    if (logits.dtype, logits.device) != (main.dtype, main.device):
        raise ValueError(
            f"subnet logits are {logits.dtype} on {logits.device}; the main network's are {main.dtype} "
            f"on {main.device}"
        )


def _check_targets(main: Tensor, targets: Tensor, *, look: bool) -> None:
    images, classes = main.shape
    hard = targets.dtype == torch.int64 and targets.shape == (images,)
    if not hard and not (targets.dtype in _DTYPES and targets.shape == main.shape):
        raise ValueError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}; allowed: class indices, int64 "
            f"[{images}], or probabilities, floating point [{images}, {classes}]"
        )
    if targets.device != main.device:
        raise ValueError(f"targets are on {targets.device}; allowed: as the main logits, {main.device}")
    if hard and look and not torch.compiler.is_compiling():
        lowest, highest = (int(bound) for bound in targets.aminmax())
        if lowest < 0 or highest >= classes:
            raise ValueError(f"targets are {lowest} to {highest}; allowed: 0 to {classes - 1}")
