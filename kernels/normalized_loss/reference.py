"""The stimulative loss in plain PyTorch: the specification of the fused operation, written to be read.

Axes: B images, C classes, K subnets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Supervision = Literal["kl", "ce_teacher", "ce_target"]
Normalization = Literal["layer_norm", "l2", "none"]

_EPS = 1e-7  # of the published code's layer norm and L2 norm


class StimulativeLoss(NamedTuple):
    """The loss of one step.

    Attributes:
        total: main_weight * main + sum of weights * subnets; the one differentiable value.
        main: the main network's cross-entropy, detached.
        subnets: each subnet's loss before its weight [K], detached.
    """

    total: Tensor
    main: Tensor
    subnets: Tensor


def stimulative_loss(
    main: Tensor,
    subnets: Sequence[Tensor],
    targets: Tensor,
    *,
    weights: Sequence[float],
    supervision: Supervision = "kl",
    normalize: Normalization = "layer_norm",
    normalize_main: bool = True,
    amplitude: float = 1.0,
    temperature: float = 1.0,
    main_weight: float = 1.0,
) -> StimulativeLoss:
    """Cross-entropy of the main network, and each subnet's distance to the main network's output.

    ST equation 5 (normalize="none") and ST++ equations 4 to 6 (KL-); `layer_norm` is what the published
    code does for KL-. The main logits are the teacher and get no gradient from the subnets.

    Args:
        main: the main network's logits [B, C]; half precision is computed in float32.
        subnets: each subnet's logits [B, C].
        targets: class indices, int64 [B], or probabilities [B, C].
        weights: each subnet's weight in the total.
        supervision: `kl`: KL(main || subnet) at `temperature`, times temperature squared; `ce_teacher`:
            cross-entropy to softmax(main); `ce_target`: cross-entropy to the targets.
        normalize: of each row of logits over the classes: `layer_norm` (zero mean, unit variance), `l2`
            (unit length) or `none`; the first two times `amplitude`.
        normalize_main: whether the main cross-entropy sees normalized logits too.
        amplitude: factor on normalized logits.
        temperature: of the KL.
        main_weight: weight of the main cross-entropy.

    Raises:
        ValueError: shapes or numbers of tensors that do not fit.
    """
    _check_shapes(main, subnets, weights)
    main = _at_least_float32(main)
    normalized = normalize_logits(main, normalize, amplitude)
    main_loss = F.cross_entropy(normalized if normalize_main else main, targets)
    teacher = normalized.detach()
    losses = [
        _subnet_loss(
            normalize_logits(_at_least_float32(logits), normalize, amplitude),
            teacher,
            targets,
            supervision,
            temperature,
        )
        for logits in subnets
    ]
    total = main_weight * main_loss
    for weight, loss in zip(weights, losses, strict=True):
        total = total + weight * loss
    detached = torch.stack([loss.detach() for loss in losses]) if losses else main.new_zeros(0)
    return StimulativeLoss(total, main_loss.detach(), detached)


def normalize_logits(logits: Tensor, normalize: Normalization, amplitude: float) -> Tensor:
    """Logits [B, C], each row normalized over the classes and multiplied by `amplitude`; `none`: as given."""
    if normalize == "layer_norm":
        return F.layer_norm(logits, logits.shape[-1:], eps=_EPS) * amplitude
    if normalize == "l2":
        return F.normalize(logits, dim=-1, eps=_EPS) * amplitude
    if normalize == "none":
        return logits
    raise ValueError(f"normalize is {normalize!r}; allowed: layer_norm, l2, none")


def _subnet_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, supervision: Supervision, temperature: float
) -> Tensor:
    if supervision == "kl":
        log_p = F.log_softmax(teacher / temperature, dim=-1)
        log_q = F.log_softmax(student / temperature, dim=-1)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
    if supervision == "ce_teacher":
        return F.cross_entropy(student, teacher.softmax(dim=-1))
    if supervision == "ce_target":
        return F.cross_entropy(student, targets)
    raise ValueError(f"supervision is {supervision!r}; allowed: kl, ce_teacher, ce_target")


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _check_shapes(main: Tensor, subnets: Sequence[Tensor], weights: Sequence[float]) -> None:
    if main.ndim != 2:
        raise ValueError(f"main logits have shape {tuple(main.shape)}; allowed: [B, C]")
    for logits in subnets:
        if logits.shape != main.shape:
            raise ValueError(
                f"subnet logits have shape {tuple(logits.shape)}; the main network's are {tuple(main.shape)}"
            )
    if len(weights) != len(subnets):
        raise ValueError(f"{len(weights)} weights for {len(subnets)} subnets")
