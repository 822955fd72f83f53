"""The stimulative loss in Triton: one launch forward, one backward, whatever the number of subnets.

Axes: B images, C classes, K subnets. Program (b, j) has row b of the main logits (j = 0) or of subnet j - 1:
a row of up to `LARGEST_ROW` classes is held in registers, a longer one is read block by block, a few times.
Subnets come as tuples of pointers, so that nobody stacks them. The forward keeps eight numbers per row, and
its last program adds the row losses up. The backward recomputes the softmaxes from them: this moves fewer
bytes than gradients stored by the forward, and rounds a gradient once, after any loss scale.

Softmaxes do not see a shift, so normalization is one factor: z - max(z) = (x - maximum) * scale. Since each
loss's dz sums to 0 over a row, dx = scale * (dz - (x - shift) * pull * sum(dz * (x - shift))).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import runtime
from ..reduction import add_parts, is_last_program
from .checks import Options
from .op import FIELDS
from .reference import EPS

LARGEST_ROW = 4096
"""Classes up to which a row is read once: with 8192, one block's registers would fill a multiprocessor."""

_LOOP_BLOCK = 2048  # columns of a long row at a time, and of a program of the backward at most
_FIELDS = tl.constexpr(FIELDS)
_EPS = tl.constexpr(EPS)


@triton.jit
def pick_row(j, b, main_ptr, main_stride, subnet_ptrs, subnet_strides, K: tl.constexpr, ALIGN: tl.constexpr):
    """Pointer to row b of the main logits (j = 0) or of subnet j - 1: a multiple of ALIGN bytes."""
    address = main_ptr.to(tl.int64)
    stride = tl.cast(main_stride, tl.int64)
    for k in tl.static_range(K):
        address = tl.where(j == k + 1, subnet_ptrs[k].to(tl.int64), address)
        stride = tl.where(j == k + 1, tl.cast(subnet_strides[k], tl.int64), stride)
    ptr = address.to(tl.pointer_type(main_ptr.dtype.element_ty)) + b * stride
    return tl.multiple_of(ptr, ALIGN)


@triton.jit
def pick_weight(j, main_weight, weights, K: tl.constexpr):
    """Weight of row j, or of each row j, in the total; 0 beyond the subnets."""
    weight = tl.where(j == 0, main_weight, 0.0)
    for k in tl.static_range(K):
        weight = tl.where(j == k + 1, weights[k], weight)
    return weight


@triton.jit
def load_block(ptr, start, C: tl.constexpr, BLOCK: tl.constexpr):
    """Columns from `start` of a row, float32; 0 beyond it."""
    columns = start + tl.arange(0, BLOCK)
    return tl.load(ptr + columns, mask=columns < C, other=0.0).to(tl.float32)


@triton.jit
def next_block(first, ptr, start, C: tl.constexpr, BLOCK: tl.constexpr):
    """Columns from `start` of a row whose first block is at hand: the only one of a short row."""
    if C <= BLOCK:
        return first
    else:
        return load_block(ptr, start, C, BLOCK)


@triton.jit
def target_block(ptr, label, smoothing, start, SOFT: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Smoothed target probabilities of the columns from `start` of a row; NaN for a label out of range."""
    if SOFT:
        share = load_block(ptr, start, C, BLOCK)
    else:
        share = tl.where(start + tl.arange(0, BLOCK) == label, 1.0, 0.0)
        share = tl.where((label >= 0) & (label < C), share, float("nan"))
    return (1.0 - smoothing) * share + smoothing / C


@triton.jit
def pick_target(target_ptr, b, stride, SOFT: tl.constexpr, ALIGN: tl.constexpr):
    """Pointer to one image's soft target, and 0; or some pointer, and the image's label."""
    if SOFT:
        return tl.multiple_of(target_ptr + b * stride, ALIGN), 0
    else:
        return target_ptr, tl.load(target_ptr + b)


@triton.jit
def read_target(ptr, label, smoothing, SOFT: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Of one image: label (of a soft target the likeliest class), and sum of the target."""
    if SOFT:
        total = tl.zeros([BLOCK], tl.float32)
        best = float("-inf")
        for start in range(0, C, BLOCK):
            share = load_block(ptr, start, C, BLOCK)
            total += share
            inside = start + tl.arange(0, BLOCK) < C
            own, where = tl.max(tl.where(inside, share, float("-inf")), axis=0, return_indices=True)
            label = tl.where(own > best, start + where, label)
            best = tl.maximum(own, best)
        return label, (1.0 - smoothing) * tl.sum(total) + smoothing
    else:
        return label, 1.0


@triton.jit
def normalization(first, ptr, amplitude, raw, NORMALIZE: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Of one row: maximum, scale, shift, pull (see the module); `raw`: it is not to be normalized after all.

    The variance is taken around the first block's mean: for a short row that is the two-pass formula.
    """
    FIRST: tl.constexpr = C if C < BLOCK else BLOCK
    pivot = tl.sum(first) / FIRST if NORMALIZE == "layer_norm" else 0.0
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, C, BLOCK):
        inside = start + tl.arange(0, BLOCK) < C
        x = next_block(first, ptr, start, C, BLOCK)
        highest = tl.maximum(highest, tl.where(inside, x, float("-inf")))
        centred = tl.where(inside, x - pivot, 0.0)
        total += centred
        squares += centred * centred
    maximum = tl.max(highest)
    if NORMALIZE == "layer_norm":
        beside = tl.sum(total) / C
        variance = tl.sum(squares) / C - beside * beside
        deviation = tl.sqrt_rn(tl.where(variance < 0.0, 0.0, variance) + _EPS)
        scale = tl.where(raw, 1.0, tl.div_rn(amplitude, deviation))
        return maximum, scale, pivot + beside, tl.where(raw, 0.0, 1.0 / (deviation * deviation * C))
    elif NORMALIZE == "l2":
        length = tl.sqrt_rn(tl.sum(squares))
        long = length >= _EPS  # a shorter row is divided by the constant
        scale = tl.where(raw, 1.0, tl.div_rn(amplitude, tl.where(long, length, _EPS)))
        return maximum, scale, 0.0, tl.where(raw | (length < _EPS), 0.0, 1.0 / (length * length))
    else:
        return maximum, 1.0, 0.0, 0.0


@triton.jit
def log_sum_exp(first, ptr, maximum, scale, C: tl.constexpr, BLOCK: tl.constexpr):
    """log(sum(exp((x - maximum) * scale))) over one row."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, C, BLOCK):
        x = next_block(first, ptr, start, C, BLOCK)
        inside = start + tl.arange(0, BLOCK) < C
        total += tl.where(inside, tl.exp((x - maximum) * scale), 0.0)
    return tl.log(tl.sum(total))


@triton.jit
def classes_above(first, ptr, label, C: tl.constexpr, BLOCK: tl.constexpr):
    """Classes with a logit not at most the label's; a NaN counts five times: then nothing is a hit."""
    own = tl.load(ptr + label, mask=(label >= 0) & (label < C), other=float("nan")).to(tl.float32)
    above = tl.zeros([BLOCK], tl.int32)
    for start in range(0, C, BLOCK):
        x = next_block(first, ptr, start, C, BLOCK)
        inside = start + tl.arange(0, BLOCK) < C
        above += tl.where(inside, tl.where(x != x, 5, tl.where(x <= own, 0, 1)), 0)
    return tl.sum(above)


@triton.jit
def follow_targets(
    first, ptr, maximum, scale, log_sum, shift,
    target_ptr, label, target_sum, smoothing,
    SOFT: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one row: cross-entropy to its target, and sum(dz * (x - shift)) for it."""
    loss = tl.zeros([BLOCK], tl.float32)
    projection = tl.zeros([BLOCK], tl.float32)
    for start in range(0, C, BLOCK):
        inside = start + tl.arange(0, BLOCK) < C
        x = next_block(first, ptr, start, C, BLOCK)
        log_q = (x - maximum) * scale - log_sum
        t = target_block(target_ptr, label, smoothing, start, SOFT, C, BLOCK)
        loss -= tl.where(inside & (t != 0.0), t * log_q, 0.0)
        projection += tl.where(inside, (target_sum * tl.exp(log_q) - t) * (x - shift), 0.0)
    return tl.sum(loss), tl.sum(projection)


@triton.jit
def follow_teacher(
    first, ptr, maximum, scale, log_sum, shift,
    teacher, teacher_ptr, teacher_maximum, teacher_scale, teacher_log_sum,
    KL: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one row: KL from or cross-entropy to the teacher's, and sum(dz * (x - shift)) for it.

    The KL's terms p * (log p - log q) - p + q are none below 0, and forgive errors of the log-sums.
    """
    loss = tl.zeros([BLOCK], tl.float32)
    projection = tl.zeros([BLOCK], tl.float32)
    for start in range(0, C, BLOCK):
        inside = start + tl.arange(0, BLOCK) < C
        x = next_block(first, ptr, start, C, BLOCK)
        y = next_block(teacher, teacher_ptr, start, C, BLOCK)
        log_q = (x - maximum) * scale - log_sum
        log_p = (y - teacher_maximum) * teacher_scale - teacher_log_sum
        p = tl.exp(log_p)
        dz = tl.exp(log_q) - p
        term = p * (log_p - log_q) + dz if KL else -p * log_q
        loss += tl.where(inside, term, 0.0)
        projection += tl.where(inside, dz * (x - shift), 0.0)
    return tl.sum(loss), tl.sum(projection)


@triton.jit
def normalized_loss_fwd_kernel(
    main_ptr, subnet_ptrs, target_ptr, main_stride, subnet_strides, target_stride,
    rows_ptr, parts_ptr, total_ptr, losses_ptr, hits_ptr, counter_ptr,
    B, main_weight, weights, amplitude, temperature, smoothing,
    SUPERVISION: tl.constexpr, NORMALIZE: tl.constexpr, NORMALIZE_MAIN: tl.constexpr, SOFT: tl.constexpr,
    C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Grid (B * (K + 1),): row losses and what the backward needs; the last program writes the results.

    `parts` [B, K + 3] float32: each row's losses, then its top-1 and top-5 hit.
    """
    FOLLOWS_TEACHER: tl.constexpr = SUPERVISION != "ce_target" and K > 0
    program = tl.program_id(0).to(tl.int64)
    j = program % (K + 1)  # all that read one row of the teacher run side by side: it is in the cache
    b = program // (K + 1)
    ptr = pick_row(j, b, main_ptr, main_stride, subnet_ptrs, subnet_strides, K, ALIGN)
    first = load_block(ptr, 0, C, BLOCK)
    teacher_ptr = pick_row(0, b, main_ptr, main_stride, subnet_ptrs, subnet_strides, 0, ALIGN)
    teacher = load_block(teacher_ptr, 0, C, BLOCK) if FOLLOWS_TEACHER else first  # both loads under way
    raw = (j == 0) & (not NORMALIZE_MAIN)
    maximum, scale, shift, pull = normalization(first, ptr, amplitude, raw, NORMALIZE, C, BLOCK)
    scale = scale / tl.where(j == 0, 1.0, temperature)
    log_sum = log_sum_exp(first, ptr, maximum, scale, C, BLOCK)
    row_ptr = rows_ptr + program * _FIELDS
    part_ptr = parts_ptr + b * (K + 3)
    if (j > 0) & FOLLOWS_TEACHER:
        taught, sharpness, _, _ = normalization(teacher, teacher_ptr, amplitude, False, NORMALIZE, C, BLOCK)
        sharpness = sharpness / temperature
        teacher_log_sum = log_sum_exp(teacher, teacher_ptr, taught, sharpness, C, BLOCK)
        loss, projection = follow_teacher(
            first, ptr, maximum, scale, log_sum, shift,
            teacher, teacher_ptr, taught, sharpness, teacher_log_sum,
            SUPERVISION == "kl", C, BLOCK,
        )  # fmt: skip
        loss *= temperature * temperature
        tl.store(row_ptr + 5, taught)
        tl.store(row_ptr + 6, sharpness)
        tl.store(row_ptr + 7, teacher_log_sum)
    else:
        own_ptr, label = pick_target(target_ptr, b, target_stride, SOFT, ALIGN)
        label, target_sum = read_target(own_ptr, label, smoothing, SOFT, C, BLOCK)
        loss, projection = follow_targets(
            first, ptr, maximum, scale, log_sum, shift,
            own_ptr, label, target_sum, smoothing,
            SOFT, C, BLOCK,
        )  # fmt: skip
        tl.store(row_ptr + 5, target_sum)
        tl.store(row_ptr + 6, 0.0)
        tl.store(row_ptr + 7, 0.0)
        if j == 0:
            above = classes_above(first, ptr, label, C, BLOCK)
            tl.store(part_ptr + K + 1, (above < 1).to(tl.float32))
            tl.store(part_ptr + K + 2, (above < min(5, C)).to(tl.float32))
    tl.store(row_ptr, maximum)
    tl.store(row_ptr + 1, scale)
    tl.store(row_ptr + 2, log_sum)
    tl.store(row_ptr + 3, shift)
    tl.store(row_ptr + 4, tl.where(pull == 0.0, 0.0, pull * projection))  # without it, -inf may stand
    tl.store(part_ptr + j, loss)
    if is_last_program(counter_ptr, tl.num_programs(0)):
        column = tl.arange(0, COLUMNS)
        sums = add_parts(parts_ptr, B, column, column < K + 3, K + 3, PARTS)
        means = sums / B
        weight = pick_weight(column, main_weight, weights, K)
        tl.store(total_ptr, tl.sum(tl.where(column <= K, weight * means, 0.0)))
        tl.store(losses_ptr + column, means, mask=column <= K)
        is_hits = (column == K + 1) | (column == K + 2)
        tl.store(hits_ptr + column - (K + 1), tl.where(is_hits, sums, 0.0).to(tl.int64), mask=is_hits)


@triton.jit
def normalized_loss_bwd_kernel(
    grad_ptr, main_ptr, subnet_ptrs, target_ptr, main_stride, subnet_strides, target_stride,
    rows_ptr, grads_ptr,
    B, main_weight, weights, temperature, smoothing,
    FOLLOWS_TEACHER: tl.constexpr, SOFT: tl.constexpr, C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Grid (B * blocks of a row * (K + 1),): one block of one row's gradient, in `grads` [K + 1, B, C]."""
    BLOCKS: tl.constexpr = (C + BLOCK - 1) // BLOCK
    program = tl.program_id(0).to(tl.int64)
    j = program % (K + 1)
    start = (program // (K + 1)) % BLOCKS * BLOCK
    b = program // (BLOCKS * (K + 1))
    ptr = pick_row(j, b, main_ptr, main_stride, subnet_ptrs, subnet_strides, K, ALIGN)
    x = load_block(ptr, start, C, BLOCK)
    row_ptr = rows_ptr + (b * (K + 1) + j) * _FIELDS
    maximum = tl.load(row_ptr)
    scale = tl.load(row_ptr + 1)
    factor = pick_weight(j, main_weight, weights, K) / B * tl.load(grad_ptr).to(tl.float32) * scale
    dz = tl.exp((x - maximum) * scale - tl.load(row_ptr + 2))
    if (j > 0) & FOLLOWS_TEACHER:
        teacher_ptr = pick_row(0, b, main_ptr, main_stride, subnet_ptrs, subnet_strides, 0, ALIGN)
        y = load_block(teacher_ptr, start, C, BLOCK)
        dz -= tl.exp((y - tl.load(row_ptr + 5)) * tl.load(row_ptr + 6) - tl.load(row_ptr + 7))
        factor *= temperature * temperature
    else:
        own_ptr, label = pick_target(target_ptr, b, target_stride, SOFT, ALIGN)
        t = target_block(own_ptr, label, smoothing, start, SOFT, C, BLOCK)
        dz = dz * tl.load(row_ptr + 5) - t
    pull = tl.load(row_ptr + 4)
    dx = factor * (dz - tl.where(pull == 0.0, 0.0, (x - tl.load(row_ptr + 3)) * pull))
    columns = start + tl.arange(0, BLOCK)
    grad = dx.to(grads_ptr.dtype.element_ty)
    tl.store(grads_ptr + (j * B + b) * C + columns, grad, mask=columns < C)


def forward(
    main: Tensor, subnets: Sequence[Tensor], targets: Tensor, weights: Sequence[float], options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the loss.

    Args:
        main: logits [B, C].
        subnets: K tensors [B, C].
        targets: int64 [B] or floating point [B, C].
        weights: of the subnets.
        options: supervision `kl`, `ce_teacher` or `ce_target`.

    Returns:
        Total, float32 scalar; main and subnet losses, float32 [K + 1]; hits, int64 [2]; `rows`.
    """
    (images, classes), count, device = main.shape, len(subnets), main.device
    total = torch.empty((), dtype=torch.float32, device=device)
    losses = torch.empty(count + 1, dtype=torch.float32, device=device)
    hits = torch.empty(2, dtype=torch.int64, device=device)
    rows = torch.empty(images, count + 1, FIELDS, dtype=torch.float32, device=device)
    parts = torch.empty(images, count + 3, dtype=torch.float32, device=device)
    block = triton.next_power_of_2(classes) if classes <= LARGEST_ROW else _LOOP_BLOCK
    warps = _warps(block)
    columns = triton.next_power_of_2(count + 3)
    inputs, alignment = _inputs(main, subnets, targets)
    runtime.launch(
        normalized_loss_fwd_kernel,
        (images * (count + 1),),
        device,
        *inputs,
        rows,
        parts,
        total,
        losses,
        hits,
        runtime.counters(device, 1),
        images,
        *_weights(weights, options),
        options.amplitude,
        _temperature(options),
        options.label_smoothing,
        SUPERVISION=options.supervision,
        NORMALIZE=options.normalize,
        NORMALIZE_MAIN=options.normalize_main,
        SOFT=targets.ndim == 2,
        C=classes,
        K=count,
        BLOCK=block,
        PARTS=max(1, 1024 * warps // columns),
        COLUMNS=columns,
        ALIGN=alignment,
        num_warps=warps,
        maxnreg=None if classes <= LARGEST_ROW else 80,  # three blocks of the loop on a multiprocessor
    )
    return total, losses, hits, rows


def backward(
    grad: Tensor,
    main: Tensor,
    subnets: Sequence[Tensor],
    targets: Tensor,
    rows: Tensor,
    weights: Sequence[float],
    options: Options,
) -> Tensor:
    """Gradients of the total in the logits' dtype [K + 1, B, C], the main network's first.

    Args:
        grad: of the total, a scalar on the device, where it stays.
        main: as in `forward`, like all that follows.
        subnets: likewise.
        targets: likewise.
        rows: of `forward`.
        weights: likewise.
        options: likewise.
    """
    (images, classes), count = main.shape, len(subnets)
    grads = torch.empty(count + 1, images, classes, dtype=main.dtype, device=main.device)
    block = min(triton.next_power_of_2(classes), _LOOP_BLOCK)
    inputs, alignment = _inputs(main, subnets, targets)
    runtime.launch(
        normalized_loss_bwd_kernel,
        (images * triton.cdiv(classes, block) * (count + 1),),
        main.device,
        grad,
        *inputs,
        rows,
        grads,
        images,
        *_weights(weights, options),
        _temperature(options),
        options.label_smoothing,
        FOLLOWS_TEACHER=options.supervision != "ce_target",
        SOFT=targets.ndim == 2,
        C=classes,
        K=count,
        BLOCK=block,
        ALIGN=alignment,
        num_warps=_warps(block),
    )
    return grads


def _inputs(main: Tensor, subnets: Sequence[Tensor], targets: Tensor) -> tuple[tuple[Any, ...], int]:
    """The tensors, then their row strides, as the kernels take them; bytes that divide each row's address."""
    main, *students = (_with_dense_rows(logits) for logits in (main, *subnets))
    targets = _with_dense_rows(targets) if targets.ndim == 2 else targets.contiguous()
    alignment = 16
    for rows in (main, *students, *([targets] if targets.ndim == 2 else [])):
        alignment = gcd(alignment, rows.data_ptr(), rows.stride(0) * rows.element_size())
    strides = main.stride(0), tuple(logits.stride(0) for logits in students), targets.stride(0)
    return (main, tuple(students), targets, *strides), alignment


def _with_dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _weights(weights: Sequence[float], options: Options) -> tuple[float, tuple[float, ...]]:
    return float(options.main_weight), tuple(float(weight) for weight in weights)


def _temperature(options: Options) -> float:
    return float(options.temperature) if options.supervision == "kl" else 1.0


def _warps(block: int) -> int:
    return min(max(block // 256, 1), 16)
