"""Triton kernels of batch norm + residual addition + ReLU, and their launches.

An activation is seen as rows of C channels: M = N*H*W rows in G groups of `rows` = M/G each. A program
handles a run of a group's rows and a block of channels; passes over the same rows share one partition of them
(`Layout`). Sums over rows are taken in two steps: each program's part of it, then the last program adds the
parts in their order, so that two runs agree to the bit. All arithmetic is in float32.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reduction import add_parts, is_last_program, merge_moments
from ..runtime import counters, launch, multiprocessors

WARPS = 8
_ONE_INPUT, _TWO_INPUTS = 4, 2
"""16-byte loads of each input that a thread has in flight in a pass over so many inputs: a tile's size.

A thread's loads are of different rows, which it adds up before it does the rest of the arithmetic (`fold`).
"""

_PROGRAMS_PER_SM = 2  # of a pass that sums: all resident at once, at up to 128 registers per thread
_CHUNK_TILES = 4  # tiles per program of an elementwise pass: parameters are loaded once for all of them


class Layout(NamedTuple):
    """How programs share an activation.

    Attributes:
        rows: of each group.
        channels: C.
        groups: G.
        block: channels per program, a power of two.
        channel_blocks: blocks that cover C.
        parts: runs of rows per group.
        rows_per_part: rows of each run, a multiple of every tile's; the last has what is left.
    """

    rows: int
    channels: int
    groups: int
    block: int
    channel_blocks: int
    parts: int
    rows_per_part: int

    @property
    def reduction_grid(self) -> tuple[int, int, int]:
        """Programs of a pass that sums over rows: a part each."""
        return self.parts, self.channel_blocks, self.groups

    def elementwise_grid(self, chunk: int) -> tuple[int, int, int]:
        """Programs of a pass without sums: `chunk` rows of a part each."""
        return self.parts * triton.cdiv(self.rows_per_part, chunk), self.channel_blocks, self.groups


@triton.jit
def inverse_deviation(variance, eps):
    """1 / sqrt(variance + eps), correctly rounded."""
    return tl.div_rn(tl.full(variance.shape, 1.0, tl.float32), tl.sqrt_rn(variance + eps))


@triton.jit
def load_moments(mean_ptr, spread_ptr, columns, mask, eps, INVERSE: tl.constexpr):
    """Mean and inverse deviation of some channels; spread is the latter with INVERSE, else the variance."""
    mean = tl.load(mean_ptr + columns, mask=mask, other=0.0)
    spread = tl.load(spread_ptr + columns, mask=mask, other=1.0)
    if not INVERSE:
        spread = inverse_deviation(spread, eps)
    return mean, spread


@triton.jit
def rectify(value):
    """max(value, 0), NaN for NaN."""
    return tl.where(value < 0.0, 0.0, value)


@triton.jit
def fold(tile, FOLD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] to [ROWS / FOLD, COLUMNS]: sums over rows that one thread holds, without exchange."""
    return tl.sum(tl.reshape(tile, (FOLD, ROWS // FOLD, COLUMNS)), axis=0)


@triton.jit
def last_rows_first(rows, rows_per_part, parts, CHUNK: tl.constexpr):
    """First row and end of a program's chunk: the end of each part first, which the pass before read last,
    so that the L2 cache may have it.
    """
    program = tl.program_id(0)
    part = program % parts
    chunk = tl.num_programs(0) // parts - 1 - program // parts
    first = part * rows_per_part + chunk * CHUNK
    return first, tl.minimum(tl.minimum(first + CHUNK, (part + 1) * rows_per_part), rows)


@triton.jit
def average_in(pointers, value, momentum, mask):
    """Move running averages towards a value."""
    kept = tl.load(pointers, mask=mask, other=0.0)
    tl.store(pointers, kept + momentum * (value - kept), mask=mask)


@triton.jit
def update_running(mean_ptr, var_ptr, mean, variance, columns, mask, rows, momentum):
    """Move the running statistics towards those of a batch, the variance's unbiased estimate."""
    average_in(mean_ptr + columns, mean, momentum, mask)
    average_in(var_ptr + columns, variance * (rows / (rows - 1.0)), momentum, mask)


@triton.jit(do_not_specialize=["rows", "rows_per_part", "tracked_group"])
def statistics_kernel(
    x_ptr,
    part_ptr,
    mean_ptr,
    rstd_ptr,
    running_mean_ptr,
    running_var_ptr,
    counter_ptr,
    rows,
    rows_per_part,
    tracked_group,
    momentum,
    eps,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    FOLD: tl.constexpr,
):
    """Mean and inverse deviation [G, C]; the running statistics from those of one group.

    Sums are of distances to the mean of the group's first tile, so that they do not cancel where the mean is
    large (Chan, Golub and LeVeque 1983). Parts [2, G, parts, C]: mean of those, sum of squares around it.
    """
    part, block, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    parts, groups = tl.num_programs(0), tl.num_programs(2)
    columns = block * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = columns < C
    row = tl.arange(0, BLOCK_R)
    offsets = row[:, None] * C + columns[None, :]
    first = part * rows_per_part
    count = tl.minimum(rows - first, rows_per_part)

    x_ptr += group.to(tl.int64) * rows * C
    head = tl.load(x_ptr + offsets, mask=(row < rows)[:, None] & inside[None, :], other=0.0).to(tl.float32)
    shift = tl.sum(head, axis=0) / tl.minimum(rows, BLOCK_R)
    total = tl.zeros([BLOCK_R // FOLD, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_R // FOLD, BLOCK_C], tl.float32)
    x_ptr += first.to(tl.int64) * C
    for start in range(0, count, BLOCK_R):
        mask = (row < count - start)[:, None] & inside[None, :]
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        distance = tl.where(mask, x - shift[None, :], 0.0)
        total += fold(distance, FOLD, BLOCK_R, BLOCK_C)
        squares += fold(distance * distance, FOLD, BLOCK_R, BLOCK_C)
        x_ptr += BLOCK_R * C

    sums = tl.sum(total, axis=0)
    mean = sums / count
    own = part_ptr + (group * parts + part) * C + columns
    tl.store(own, mean, mask=inside)
    tl.store(own + groups * parts * C, tl.sum(squares, axis=0) - sums * mean, mask=inside)
    if is_last_program(counter_ptr + group * tl.num_programs(1) + block, parts):
        mean_parts = part_ptr + group * parts * C
        square_parts = mean_parts + groups * parts * C
        mean, variance = merge_moments(
            mean_parts, square_parts, parts, rows, rows_per_part, columns, inside, C, BLOCK_R
        )
        mean += shift
        tl.store(mean_ptr + group * C + columns, mean, mask=inside)
        tl.store(rstd_ptr + group * C + columns, inverse_deviation(variance, eps), mask=inside)
        if running_mean_ptr is not None:  # noqa: SIM102 - joined, Triton would compile the loads from None
            if group == tracked_group:
                update_running(
                    running_mean_ptr, running_var_ptr, mean, variance, columns, inside, rows, momentum
                )


@triton.jit(do_not_specialize=["rows", "rows_per_part", "parts", "tracked_group"])
def apply_kernel(
    x_ptr,
    residual_ptr,
    y_ptr,
    mean_ptr,
    spread_ptr,
    weight_ptr,
    bias_ptr,
    rstd_ptr,
    running_mean_ptr,
    running_var_ptr,
    momentum,
    tracked_group,
    rows,
    rows_per_part,
    parts,
    eps,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr,
    RELU: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """Output y = relu((x - mean) * rstd * weight + bias + residual).

    With rstd_ptr [G, C] the spread is the variance of a batch whose statistics were given: the first programs
    keep its inverse deviation there, and update the running statistics from one group's.
    """
    first, stop = last_rows_first(rows, rows_per_part, parts, CHUNK)
    group = tl.program_id(2)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = columns < C
    moments = group * C
    mean, rstd = load_moments(mean_ptr + moments, spread_ptr + moments, columns, inside, eps, INVERSE)
    if rstd_ptr is not None:  # noqa: SIM102 - joined, Triton would compile the loads from None
        if tl.program_id(0) == 0:
            tl.store(rstd_ptr + moments + columns, rstd, mask=inside)
            if running_mean_ptr is not None:  # noqa: SIM102
                if group == tracked_group:
                    variance = tl.load(spread_ptr + moments + columns, mask=inside, other=0.0)
                    update_running(
                        running_mean_ptr, running_var_ptr, mean, variance, columns, inside, rows, momentum
                    )
    scale = rstd * tl.load(weight_ptr + columns, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0)

    row = tl.arange(0, BLOCK_R)
    offsets = row[:, None] * C + columns[None, :]
    base = (group.to(tl.int64) * rows + first) * C
    for start in range(first, stop, BLOCK_R):
        mask = (row < stop - start)[:, None] & inside[None, :]
        x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
        y = (x - mean[None, :]) * scale[None, :] + bias[None, :]
        if residual_ptr is not None:
            y += tl.load(residual_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            y = rectify(y)
        tl.store(y_ptr + base + offsets, y, mask=mask)
        base += BLOCK_R * C


@triton.jit(do_not_specialize=["rows", "rows_per_part"])
def gradient_sums_kernel(
    grad_ptr,
    x_ptr,
    y_ptr,
    masked_ptr,
    mean_ptr,
    spread_ptr,
    weight_ptr,
    bias_ptr,
    part_ptr,
    sums_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    counter_ptr,
    rows,
    rows_per_part,
    eps,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    FOLD: tl.constexpr,
    RELU: tl.constexpr,
    TRAINING: tl.constexpr,
):
    """Sums over rows of g and of g * xhat [2, G, C]; of those over groups: the gradients of bias and weight.

    g is the gradient where the ReLU let through: where y is positive or NaN, or, without y, the normalized x
    is. With y, g is stored too. Parts [2, G, parts, C]: each program's sums.
    """
    part, block, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    parts, groups = tl.num_programs(0), tl.num_programs(2)
    columns = block * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = columns < C
    moments = group * C
    mean, rstd = load_moments(mean_ptr + moments, spread_ptr + moments, columns, inside, eps, TRAINING)
    scale = rstd * tl.load(weight_ptr + columns, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0)

    row = tl.arange(0, BLOCK_R)
    offsets = row[:, None] * C + columns[None, :]
    first = part * rows_per_part
    count = tl.minimum(rows - first, rows_per_part)
    base = (group.to(tl.int64) * rows + first) * C
    total = tl.zeros([BLOCK_R // FOLD, BLOCK_C], tl.float32)
    products = tl.zeros([BLOCK_R // FOLD, BLOCK_C], tl.float32)
    for start in range(0, count, BLOCK_R):
        mask = (row < count - start)[:, None] & inside[None, :]
        g = tl.load(grad_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
        distance = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32) - mean[None, :]
        if y_ptr is not None:
            g = tl.where(tl.load(y_ptr + base + offsets, mask=mask, other=0.0) <= 0.0, 0.0, g)
            tl.store(masked_ptr + base + offsets, g, mask=mask)
        elif RELU:
            g = tl.where(distance * scale[None, :] + bias[None, :] <= 0.0, 0.0, g)
        total += fold(g, FOLD, BLOCK_R, BLOCK_C)
        products += fold(g * distance, FOLD, BLOCK_R, BLOCK_C)
        base += BLOCK_R * C

    own = part_ptr + (group * parts + part) * C + columns
    tl.store(own, tl.sum(total, axis=0), mask=inside)
    tl.store(own + groups * parts * C, tl.sum(products, axis=0) * rstd, mask=inside)
    if is_last_program(counter_ptr + block, parts * groups):
        grad_bias = tl.zeros([BLOCK_C], tl.float32)
        grad_weight = tl.zeros([BLOCK_C], tl.float32)
        for index in range(groups):
            of_group = part_ptr + index * parts * C
            sum_g = add_parts(of_group, parts, columns, inside, C, BLOCK_R)
            sum_gx = add_parts(of_group + groups * parts * C, parts, columns, inside, C, BLOCK_R)
            tl.store(sums_ptr + index * C + columns, sum_g, mask=inside)
            tl.store(sums_ptr + (groups + index) * C + columns, sum_gx, mask=inside)
            grad_bias += sum_g
            grad_weight += sum_gx
        tl.store(grad_bias_ptr + columns, grad_bias, mask=inside)
        tl.store(grad_weight_ptr + columns, grad_weight, mask=inside)


@triton.jit
def load_gradient_terms(
    mean_ptr,
    spread_ptr,
    weight_ptr,
    sums_ptr,
    columns,
    mask,
    group,
    groups,
    rows,
    eps,
    C,
    TRAINING: tl.constexpr,
):
    """Mean, scale, a and b [BLOCK_C] of the input's gradient: scale * (g - a - (x - mean) * b)."""
    at = group * C
    mean, rstd = load_moments(mean_ptr + at, spread_ptr + at, columns, mask, eps, TRAINING)
    scale = rstd * tl.load(weight_ptr + columns, mask=mask, other=0.0)
    a = tl.load(sums_ptr + at + columns, mask=mask, other=0.0) / rows
    b = tl.load(sums_ptr + groups * C + at + columns, mask=mask, other=0.0) / rows * rstd
    return mean, scale, a, b


@triton.jit(do_not_specialize=["rows", "rows_per_part", "parts"])
def input_gradient_kernel(
    grad_ptr,
    x_ptr,
    grad_x_ptr,
    mean_ptr,
    spread_ptr,
    weight_ptr,
    bias_ptr,
    sums_ptr,
    rows,
    rows_per_part,
    parts,
    eps,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr,
    MASK: tl.constexpr,
    TRAINING: tl.constexpr,
):
    """The input's gradient: scale * (g - mean(g) - xhat * mean(g * xhat)), scale * g in evaluation mode.

    MASK: g is `grad` where the normalized x is positive; else it is `grad`.
    """
    first, stop = last_rows_first(rows, rows_per_part, parts, CHUNK)
    group, groups = tl.program_id(2), tl.num_programs(2)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = columns < C
    mean, scale, a, b = load_gradient_terms(
        mean_ptr, spread_ptr, weight_ptr, sums_ptr, columns, inside, group, groups, rows, eps, C, TRAINING
    )
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0)

    row = tl.arange(0, BLOCK_R)
    offsets = row[:, None] * C + columns[None, :]
    base = (group.to(tl.int64) * rows + first) * C
    for start in range(first, stop, BLOCK_R):
        mask = (row < stop - start)[:, None] & inside[None, :]
        g = tl.load(grad_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
        if MASK or TRAINING:
            distance = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32) - mean[None, :]
        if MASK:
            g = tl.where(distance * scale[None, :] + bias[None, :] <= 0.0, 0.0, g)
        if TRAINING:
            g = g - a[None, :] - distance * b[None, :]
        tl.store(grad_x_ptr + base + offsets, g * scale[None, :], mask=mask)
        base += BLOCK_R * C


class Updates(NamedTuple):
    """What `normalize` writes besides its output where a batch's statistics are given.

    Attributes:
        rstd: the inverse deviation [G, C].
        running_mean: [C], updated in place from `tracked_group`, as is `running_var`; None: not.
        running_var: see there; takes the unbiased variance.
        momentum: weight of the new value.
        tracked_group: index of that group.
    """

    rstd: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float
    tracked_group: int


def layout(x: Tensor, groups: int) -> Layout:
    """How programs share an activation [N, C] or [N, C, H, W]; only its sizes and dtype matter."""
    channels = x.shape[1]
    return _layout(x.numel() // channels // groups, channels, groups, x.element_size(), x.device)


@cache
def _layout(rows: int, channels: int, groups: int, itemsize: int, device: torch.device) -> Layout:
    block = min(128, triton.next_power_of_2(channels))
    channel_blocks = triton.cdiv(channels, block)
    # on a CPU as on an H200, so that tests see several parts
    wanted = max(1, _PROGRAMS_PER_SM * multiprocessors(device, on_cpu=132) // (channel_blocks * groups))
    tile = tile_rows(block, itemsize, _ONE_INPUT)
    rows_per_part = triton.cdiv(triton.cdiv(rows, tile), wanted) * tile
    parts = triton.cdiv(rows, rows_per_part)
    return Layout(rows, channels, groups, block, channel_blocks, parts, rows_per_part)


def tile_rows(block: int, itemsize: int, loads: int) -> int:
    """Rows of a tile of `block` channels, of so many 16-byte loads per thread."""
    return loads * WARPS * 32 * 16 // itemsize // block


def statistics(
    x: Tensor,
    groups: int,
    eps: float,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.1,
    tracked_group: int = 0,
) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation [G, C] float32 of an activation; one launch.

    Args:
        x: [N, C], or [N, C, H, W] in channels_last.
        groups: G.
        eps: added to the variance.
        running_mean: updated in place from `tracked_group`, as is `running_var`; None: not.
        running_var: see there; takes the unbiased variance.
        momentum: weight of the new value.
        tracked_group: index of that group.
    """
    shared = layout(x, groups)
    mean, rstd = (x.new_empty(groups, shared.channels, dtype=torch.float32) for _ in range(2))
    launch(
        statistics_kernel,
        shared.reduction_grid,
        x.device,
        x,
        x.new_empty(2, groups, shared.parts, shared.channels, dtype=torch.float32),
        mean,
        rstd,
        running_mean,
        running_var,
        counters(x.device, groups * shared.channel_blocks),
        shared.rows,
        shared.rows_per_part,
        tracked_group,
        momentum,
        eps,
        C=shared.channels,
        BLOCK_R=tile_rows(shared.block, x.element_size(), _ONE_INPUT),
        BLOCK_C=shared.block,
        FOLD=_ONE_INPUT,
        num_warps=WARPS,
    )
    return mean, rstd


def normalize(
    x: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    inverse: bool,
    eps: float,
    relu: bool,
    groups: int,
    updates: Updates | None = None,
) -> Tensor:
    """relu((x - mean) * rstd * weight + bias + residual); one launch.

    `mean` and `spread` are [G, C]; `spread` is the inverse deviation with `inverse`, else the variance.
    """
    shared = layout(x, groups)
    rows = tile_rows(shared.block, x.element_size(), _ONE_INPUT if residual is None else _TWO_INPUTS)
    y = torch.empty_like(x)
    launch(
        apply_kernel,
        shared.elementwise_grid(_CHUNK_TILES * rows),
        x.device,
        x,
        residual,
        y,
        mean,
        spread,
        weight,
        bias,
        *(updates or (None, None, None, 0.0, 0)),
        shared.rows,
        shared.rows_per_part,
        shared.parts,
        eps,
        C=shared.channels,
        BLOCK_R=rows,
        BLOCK_C=shared.block,
        CHUNK=_CHUNK_TILES * rows,
        RELU=relu,
        INVERSE=inverse,
        num_warps=WARPS,
    )
    return y


def gradient_sums(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    eps: float,
    relu: bool,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over rows of g and g * xhat; one launch.

    Args:
        grad: of the output, laid out as x.
        x: the input.
        y: the output; where it is positive g is `grad`. None: see `relu`.
        mean: [G, C] in training, else the running one [C].
        spread: the inverse deviation [G, C] in training, else the running variance [C].
        weight: [C].
        bias: [C].
        training: see `spread`.
        eps: added to the variance.
        relu: without y: g is `grad` where the normalized x is positive, else it is `grad` everywhere.
        groups: G.

    Returns:
        g (empty without y); the sums [2, G, C]; the gradients of weight and bias [C].
    """
    shared = layout(x, groups)
    masked = torch.empty_like(grad) if y is not None else grad.new_empty(0)
    sums = x.new_empty(2, groups, shared.channels, dtype=torch.float32)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    launch(
        gradient_sums_kernel,
        shared.reduction_grid,
        x.device,
        grad,
        x,
        y,
        masked,
        mean,
        spread,
        weight,
        bias,
        x.new_empty(2, groups, shared.parts, shared.channels, dtype=torch.float32),
        sums,
        grad_weight,
        grad_bias,
        counters(x.device, shared.channel_blocks),
        shared.rows,
        shared.rows_per_part,
        eps,
        C=shared.channels,
        BLOCK_R=tile_rows(shared.block, x.element_size(), _TWO_INPUTS),
        BLOCK_C=shared.block,
        FOLD=_TWO_INPUTS,
        RELU=relu,
        TRAINING=training,
        num_warps=WARPS,
        maxnreg=128,  # ptxas, left to itself, takes 80 and spills some
    )
    return masked, sums, grad_weight, grad_bias


def input_gradient(
    grad: Tensor,
    x: Tensor,
    sums: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    eps: float,
    mask: bool,
    groups: int,
) -> Tensor:
    """The input's gradient from `gradient_sums`; with `mask` the ReLU's is taken into account; one launch."""
    shared = layout(x, groups)
    rows = tile_rows(shared.block, x.element_size(), _TWO_INPUTS)
    grad_x = torch.empty_like(x)
    launch(
        input_gradient_kernel,
        shared.elementwise_grid(_CHUNK_TILES * rows),
        x.device,
        grad,
        x,
        grad_x,
        mean,
        spread,
        weight,
        bias,
        sums,
        shared.rows,
        shared.rows_per_part,
        shared.parts,
        eps,
        C=shared.channels,
        BLOCK_R=rows,
        BLOCK_C=shared.block,
        CHUNK=_CHUNK_TILES * rows,
        MASK=mask,
        TRAINING=training,
        num_warps=WARPS,
    )
    return grad_x
