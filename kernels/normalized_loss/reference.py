"""The stimulative loss in plain PyTorch: the specification of the fused operation, written to be read.

Axes: B images, C classes, K subnets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import MainLoss, Normalization, Options, Supervision, check_share, check_tensors

EPS = 1e-7  # of the published code's layer norm and L2 norm


class StimulativeLoss(NamedTuple):
    """The loss of one step.

    Attributes:
        total: main_weight * main + sum of weights * subnets; the one differentiable value.
        main: the main network's loss, detached.
        subnets: each subnet's loss before its weight [K], detached.
        hits: images whose target is among the main network's best class and best five, int64 [2].
    """

    total: Tensor
    main: Tensor
    subnets: Tensor
    hits: Tensor


def stimulative_loss(
    main: Tensor,
    subnets: Sequence[Tensor] | Tensor,
    targets: Tensor,
    *,
    weights: Sequence[float],
    supervision: Supervision = "kl",
    normalize: Normalization = "layer_norm",
    normalize_main: bool = True,
    amplitude: float = 1.0,
    temperature: float = 1.0,
    main_weight: float = 1.0,
    label_smoothing: float = 0.0,
    ensemble: float = 0.0,
    scale_by_teacher: bool = False,
    main_loss: MainLoss = "ce",
    target_threshold: float = 0.0,
    check_targets: bool = False,
) -> StimulativeLoss:
    """Cross-entropy of the main network, and each subnet's distance to the main network's output.

    ST equation 5 (normalize="none") and ST++ equations 4 to 6 (KL-); `layer_norm` is what the published
    code does for KL-. The main logits are the teacher and get no gradient from the subnets; neither do
    the targets.

    Args:
        main: the main network's logits [B, C]; half precision is computed in float32.
        subnets: each subnet's logits [B, C], or all of them [K, B, C]; dtype and device of `main`.
        targets: class indices, int64 [B], or probabilities [B, C].
        weights: each subnet's weight in the total.
        supervision: `kl`: KL(main || subnet) at `temperature`, times temperature squared; `ce_teacher`:
            cross-entropy to softmax(main); `ce_target`: cross-entropy to the targets; `dkd`: decoupled
            KL (see `_decoupled_kl`); `mse`: mean squared difference of the softmaxes, over B and C;
            `bce_teacher`: binary cross-entropy to the sigmoid of main, mean over B and C.
        normalize: of each row of logits over the classes: `layer_norm` (zero mean, unit variance), `l2`
            (unit length) or `none`; the first two times `amplitude`.
        normalize_main: whether the main cross-entropy sees normalized logits too.
        amplitude: factor on normalized logits.
        temperature: of the KL.
        main_weight: weight of the main cross-entropy.
        label_smoothing: as `F.cross_entropy`'s, in every cross-entropy to the targets.
        ensemble: after each subnet's turn the teacher becomes (1 - ensemble) * teacher + ensemble * the
            subnet's normalized logits in layer norm; 0: the main logits teach all.
        scale_by_teacher: multiply the logits of both sides of the KL by the main logits' standard deviation
            over the classes (unbiased; of normalized logits where they are normalized).
        main_loss: of the main network: `ce`, or `bce`, see `binary_cross_entropy`.
        target_threshold: of `bce`.
        check_targets: look for class indices out of range on any device, not on a CPU alone; waits for it.

    Raises:
        ValueError: tensors or numbers of tensors that do not fit, unknown options, targets out of range.
    """
    options = Options(
        supervision, normalize, normalize_main, amplitude, temperature, main_weight, label_smoothing
    )
    options.check()
    check_share("ensemble", ensemble)
    check_share("target_threshold", target_threshold)
    if main_loss not in get_args(MainLoss):
        raise ValueError(f"main_loss is {main_loss!r}; allowed: {', '.join(get_args(MainLoss))}")
    check_tensors(main, subnets, targets, weights, supervision, check_targets=check_targets)
    main = _at_least_float32(main)
    targets = targets.detach().to(main.dtype) if targets.ndim == 2 else targets
    normalized = normalize_logits(main, normalize, amplitude)
    judged = normalized if normalize_main else main
    if main_loss == "bce":
        own = binary_cross_entropy(
            judged, targets, label_smoothing=label_smoothing, threshold=target_threshold
        )
    else:
        own = F.cross_entropy(judged, targets, label_smoothing=label_smoothing)
    teacher = normalized.detach()
    scale = teacher.std(dim=-1, keepdim=True) if scale_by_teacher else 1.0
    losses = []
    for logits in subnets:
        student = normalize_logits(_at_least_float32(logits), normalize, amplitude)
        losses.append(_subnet_loss(student, teacher, targets, options, scale))
        if ensemble:
            teacher = teacher.lerp(normalize_logits(student.detach(), "layer_norm", 1.0), ensemble)
    total = main_weight * own
    for weight, loss in zip(weights, losses, strict=True):
        total = total + weight * loss
    detached = torch.stack([loss.detach() for loss in losses]) if losses else main.new_zeros(0)
    return StimulativeLoss(total, own.detach(), detached, _hits(main.detach(), targets))


def normalize_logits(logits: Tensor, normalize: Normalization, amplitude: float) -> Tensor:
    """Logits [B, C], each row normalized over the classes and multiplied by `amplitude`; `none`: as given."""
    if normalize == "layer_norm":
        return F.layer_norm(logits, logits.shape[-1:], eps=EPS) * amplitude
    if normalize == "l2":
        return F.normalize(logits, dim=-1, eps=EPS) * amplitude
    if normalize == "none":
        return logits
    raise ValueError(f"normalize is {normalize!r}; allowed: layer_norm, l2, none")


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, threshold: float = 0.0
) -> Tensor:
    """A binary cross-entropy for each class, mean over images and classes (Wightman et al. 2021).

    Args:
        logits: [B, C].
        targets: class indices, int64 [B], or the classes' shares of an image, [B, C], as mixup makes them.
        label_smoothing: s; a share t becomes (1 - s) * t + s / C, as in `F.cross_entropy`.
        threshold: shares above it count as 1 and the others as 0, after the smoothing; 0: as they are.
    """
    classes = logits.shape[1]
    if targets.ndim == 1:
        targets = (targets[:, None] == torch.arange(classes, device=targets.device)).to(logits.dtype)
    targets = (1 - label_smoothing) * targets + label_smoothing / classes
    if threshold:
        targets = (targets > threshold).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets)


def _subnet_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, options: Options, scale: Tensor | float
) -> Tensor:
    if options.supervision == "kl":
        factor = scale / options.temperature
        return _kl(student * factor, teacher * factor) * options.temperature**2
    if options.supervision == "ce_teacher":
        return F.cross_entropy(student, teacher.softmax(dim=-1))
    if options.supervision == "dkd":
        return _decoupled_kl(student, teacher, targets)
    if options.supervision == "bce_teacher":
        return F.binary_cross_entropy_with_logits(student, teacher.sigmoid())
    if options.supervision == "mse":
        return F.mse_loss(student.softmax(dim=-1), teacher.softmax(dim=-1))
    return F.cross_entropy(student, targets, label_smoothing=options.label_smoothing)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)), mean over the batch."""
    log_p, log_q = F.log_softmax(teacher, dim=-1), F.log_softmax(student, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _decoupled_kl(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """KL of (target, any other class), plus KL among the other classes (Zhao et al. 2022, equation 7).

    With alpha = beta = temperature = 1, as the published code of ST calls it.
    """

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        others = torch.arange(logits.shape[1] - 1, device=logits.device)
        rest = logits.gather(1, others + (others >= targets[:, None]))
        return torch.cat([logits.gather(1, targets[:, None]), rest.logsumexp(1, keepdim=True)], 1), rest

    (student_pair, student_rest), (teacher_pair, teacher_rest) = split(student), split(teacher)
    return _kl(student_pair, teacher_pair) + _kl(student_rest, teacher_rest)


def _hits(main: Tensor, targets: Tensor) -> Tensor:
    """A target is among the best k if fewer than k classes have a larger logit; never with a NaN around."""
    labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
    larger = (main > main.gather(1, labels[:, None])).sum(dim=1)
    larger = larger.masked_fill(main.isnan().any(dim=1), main.shape[1])
    return torch.stack([(larger < k).sum() for k in (1, min(5, main.shape[1]))])


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
