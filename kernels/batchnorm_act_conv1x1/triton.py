"""1x1 convolutions as matrix products: batch norm and ReLU where a tile is loaded, sums where it is stored.

A channels_last tensor is a matrix: one row per pixel, M = N*H*W of them, and one column per channel. The rows
of a group are contiguous, and no tile holds rows of two groups. A program takes a block of columns and a run
of row tiles, so that a few hundred programs leave few parts to merge. Programs that differ in columns alone
are neighbours and find their rows in the L2 cache, as they do the weight (2 MiB at most in ResNet-50). Block
shapes depend on channels and dtype alone: other batches and sizes compile nothing.

Names: i input channels, o output channels, `rows` of one group, `parts` per group, `tiles` per part.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reduction import add_parts, is_last_program, merge_moments
from ..runtime import counters, launch, multiprocessors

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
_VARYING = ["rows", "parts", "tiles", "out_height", "out_width", "height", "width"]


@triton.jit
def activate(b_x, mean, rstd, weight, bias):
    """relu(batch norm), in float32: rounding it afterwards gives what plain PyTorch stores."""
    normalized = (b_x.to(tl.float32) - mean) * (rstd * weight) + bias
    return tl.maximum(normalized, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def rounded(b, dtype: tl.constexpr):
    """Float32 values in another dtype, the nearest ones."""
    if _INTERPRETED and dtype == tl.bfloat16:  # the interpreter cuts bits off
        bits = b.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        b = bits.to(tl.float32, bitcast=True)
    return b.to(dtype)


@triton.jit
def load_rows(x_ptr, offset, inside, columns, COLUMNS: tl.constexpr):
    """A tile whose rows begin at the given offsets; zeros outside."""
    mask = inside[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(x_ptr + offset[:, None] + columns[None, :], mask=mask, other=0.0)


@triton.jit
def load_activated(
    x_ptr, offset, inside, columns, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, COLUMNS: tl.constexpr
):
    """A tile of x, after batch norm and ReLU where there is a batch norm, in x's dtype."""
    b_x = load_rows(x_ptr, offset, inside, columns, COLUMNS)
    if weight_ptr is not None:
        known = columns < COLUMNS
        mean = tl.load(mean_ptr + columns, mask=known, other=0.0)
        rstd = tl.load(rstd_ptr + columns, mask=known, other=0.0)
        weight = tl.load(weight_ptr + columns, mask=known, other=0.0)
        bias = tl.load(bias_ptr + columns, mask=known, other=0.0)
        activated = activate(b_x, mean[None, :], rstd[None, :], weight[None, :], bias[None, :])
        b_x = rounded(activated, b_x.dtype)
    return b_x


@triton.jit
def load_matrix(ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDES: tl.constexpr):
    """A tile of the convolution's weight, or of its transpose, by its two strides."""
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(ptr + rows[:, None] * STRIDES[0] + columns[None, :] * STRIDES[1], mask=mask, other=0.0)


@triton.jit
def multiply_add(b_a, b_b, b_sum, PRECISION: tl.constexpr):
    """b_a @ b_b + b_sum in float32."""
    if _INTERPRETED:  # it holds bfloat16 as integers, and would multiply those
        b_a, b_b = b_a.to(tl.float32), b_b.to(tl.float32)
    return tl.dot(b_a, b_b, b_sum, input_precision=PRECISION)


@triton.jit(do_not_specialize=_VARYING)
def conv_fwd_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    part_ptr,
    counter_ptr,
    y_mean_ptr,
    y_var_ptr,
    rows,
    parts,
    tiles,
    out_height,
    out_width,
    height,
    width,
    I: tl.constexpr,  # noqa: E741
    O: tl.constexpr,  # noqa: E741
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Write activated(x) @ w.T to y, and the mean and variance of its columns.

    The moments of each tile go to part_ptr [2, groups, parts, tiles, O] float32; a program merges those of
    its tiles into its first, the last program of a group merges these.
    """
    column_blocks: tl.constexpr = (O + BLOCK_O - 1) // BLOCK_O
    column_block = tl.program_id(0) % column_blocks
    group_part = tl.program_id(0) // column_blocks
    group = group_part // parts
    first = (group_part % parts) * tiles
    columns = column_block * BLOCK_O + tl.arange(0, BLOCK_O)
    known = columns < O
    if weight_ptr is not None:
        mean_ptr += group * I
        rstd_ptr += group * I
    if I <= BLOCK_I:  # the weight is loaded once
        b_w = load_matrix(w_ptr, tl.arange(0, BLOCK_I), columns, I, O, (1, I))
    if part_ptr is not None:
        groups = tl.num_programs(0) // column_blocks // parts
        part_ptr += group_part * tiles * O
        squares_ptr = part_ptr + groups * parts * tiles * O
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(rows, BLOCK_M))):
        local = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = local < rows
        row = group * rows + local
        source = row
        if STRIDE > 1:
            line = row // out_width
            source = (line // out_height) * height + (line % out_height) * STRIDE
            source = source * width + (row % out_width) * STRIDE
        offset = source.to(tl.int64) * I
        b_y = tl.zeros((BLOCK_M, BLOCK_O), tl.float32)
        if I <= BLOCK_I:
            b_x = load_activated(
                x_ptr, offset, inside, tl.arange(0, BLOCK_I), weight_ptr, bias_ptr, mean_ptr, rstd_ptr, I
            )
            b_y = multiply_add(b_x, b_w, b_y, PRECISION)
        else:
            for start in range(0, I, BLOCK_I):
                inner = start + tl.arange(0, BLOCK_I)
                b_x = load_activated(
                    x_ptr, offset, inside, inner, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, I
                )
                b_w = load_matrix(w_ptr, inner, columns, I, O, (1, I))
                b_y = multiply_add(b_x, b_w, b_y, PRECISION)
        b_y = rounded(b_y, y_ptr.dtype.element_ty)
        offset = row.to(tl.int64) * O
        tl.store(y_ptr + offset[:, None] + columns[None, :], b_y, mask=inside[:, None] & known[None, :])
        if part_ptr is not None:  # of the values as they are stored; kept in memory, registers are scarce
            b_y = tl.where(inside[:, None], b_y.to(tl.float32), 0.0)
            mean = tl.sum(b_y, axis=0) / tl.minimum(rows - tile * BLOCK_M, BLOCK_M)
            b_y = tl.where(inside[:, None], b_y - mean[None, :], 0.0)
            tl.store(part_ptr + (tile - first) * O + columns, mean, mask=known)
            tl.store(squares_ptr + (tile - first) * O + columns, tl.sum(b_y * b_y, axis=0), mask=known)
    if part_ptr is not None:
        tl.debug_barrier()
        stop = tl.minimum(first + tiles, tl.cdiv(rows, BLOCK_M))
        own = tl.minimum(rows - first * BLOCK_M, tiles * BLOCK_M)
        mean, var = merge_moments(part_ptr, squares_ptr, stop - first, own, BLOCK_M, columns, known, O, 8)
        tl.debug_barrier()
        tl.store(part_ptr + columns, mean, mask=known)
        tl.store(squares_ptr + columns, var * own, mask=known)
        if is_last_program(counter_ptr + group * column_blocks + column_block, parts):
            own_parts = group_part % parts * tiles * O
            mean, var = merge_moments(
                part_ptr - own_parts,
                squares_ptr - own_parts,
                parts,
                rows,
                tiles * BLOCK_M,
                columns,
                known,
                tiles * O,
                8,
            )
            tl.store(y_mean_ptr + group * O + columns, mean, mask=known)
            tl.store(y_var_ptr + group * O + columns, var, mask=known)


@triton.jit(do_not_specialize=_VARYING)
def conv_bwd_kernel(
    dy_ptr,
    w_ptr,
    x_ptr,
    g_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    part_ptr,
    counter_ptr,
    sum_ptr,
    rows,
    parts,
    tiles,
    I: tl.constexpr,  # noqa: E741
    O: tl.constexpr,  # noqa: E741
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Write dy @ w where ReLU passed to g; sum(g) and sum(g * normalized x): sum_ptr [2, groups, I] float32.

    part_ptr [2, groups, parts, tiles, I] float32 as in the forward kernel.
    """
    column_blocks: tl.constexpr = (I + BLOCK_I - 1) // BLOCK_I
    column_block = tl.program_id(0) % column_blocks
    group_part = tl.program_id(0) // column_blocks
    group = group_part // parts
    first = (group_part % parts) * tiles
    columns = column_block * BLOCK_I + tl.arange(0, BLOCK_I)
    known = columns < I
    groups = tl.num_programs(0) // column_blocks // parts
    part_ptr += group_part * tiles * I
    products_ptr = part_ptr + groups * parts * tiles * I
    if O <= BLOCK_O:
        b_w = load_matrix(w_ptr, tl.arange(0, BLOCK_O), columns, O, I, (I, 1))
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(rows, BLOCK_M))):
        local = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = local < rows
        row = (group * rows + local).to(tl.int64)
        b_g = tl.zeros((BLOCK_M, BLOCK_I), tl.float32)
        if O <= BLOCK_O:
            b_dy = load_rows(dy_ptr, row * O, inside, tl.arange(0, BLOCK_O), O)
            b_g = multiply_add(b_dy, b_w, b_g, PRECISION)
        else:
            for start in range(0, O, BLOCK_O):
                inner = start + tl.arange(0, BLOCK_O)
                b_dy = load_rows(dy_ptr, row * O, inside, inner, O)
                b_w = load_matrix(w_ptr, inner, columns, O, I, (I, 1))
                b_g = multiply_add(b_dy, b_w, b_g, PRECISION)
        b_x = load_rows(x_ptr, row * I, inside, columns, I)
        mean = tl.load(mean_ptr + group * I + columns, mask=known, other=0.0)
        rstd = tl.load(rstd_ptr + group * I + columns, mask=known, other=0.0)
        weight = tl.load(weight_ptr + columns, mask=known, other=0.0)
        bias = tl.load(bias_ptr + columns, mask=known, other=0.0)
        activated = activate(b_x, mean[None, :], rstd[None, :], weight[None, :], bias[None, :])
        passed = activated.to(b_x.dtype).to(tl.float32) != 0  # what rounds to zero was not passed on either
        b_g = rounded(tl.where(passed & inside[:, None], b_g, 0.0), g_ptr.dtype.element_ty)
        tl.store(g_ptr + (row * I)[:, None] + columns[None, :], b_g, mask=inside[:, None] & known[None, :])
        b_g = b_g.to(tl.float32)
        tl.store(part_ptr + (tile - first) * I + columns, tl.sum(b_g, axis=0), mask=known)
        product = tl.sum(b_g * (b_x.to(tl.float32) - mean[None, :]), axis=0) * rstd
        tl.store(products_ptr + (tile - first) * I + columns, product, mask=known)
    tl.debug_barrier()
    stop = tl.minimum(first + tiles, tl.cdiv(rows, BLOCK_M))
    b_sum = add_parts(part_ptr, stop - first, columns, known, I, 8)
    b_product = add_parts(products_ptr, stop - first, columns, known, I, 8)
    tl.debug_barrier()
    tl.store(part_ptr + columns, b_sum, mask=known)
    tl.store(products_ptr + columns, b_product, mask=known)
    if is_last_program(counter_ptr + group * column_blocks + column_block, parts):
        own_parts = group_part % parts * tiles * I
        b_sum = add_parts(part_ptr - own_parts, parts, columns, known, tiles * I, 8)
        tl.store(sum_ptr + group * I + columns, b_sum, mask=known)
        b_product = add_parts(products_ptr - own_parts, parts, columns, known, tiles * I, 8)
        tl.store(sum_ptr + (groups + group) * I + columns, b_product, mask=known)


@triton.jit(do_not_specialize=["rows"])
def norm_bwd_kernel(
    g_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    sum_ptr,
    rows,
    I: tl.constexpr,  # noqa: E741
    TRAINING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Turn g into the gradient of x, in place; in training mean and rstd are functions of x."""
    group = tl.program_id(2)
    columns = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    known = columns < I
    local = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = local < rows
    offset = (group * rows + local).to(tl.int64) * I
    rstd = tl.load(rstd_ptr + group * I + columns, mask=known, other=0.0)
    weight = tl.load(weight_ptr + columns, mask=known, other=0.0)
    b_dx = load_rows(g_ptr, offset, inside, columns, I).to(tl.float32)
    if TRAINING:
        mean = tl.load(mean_ptr + group * I + columns, mask=known, other=0.0)
        total = tl.load(sum_ptr + group * I + columns, mask=known, other=0.0)
        product = tl.load(sum_ptr + (tl.num_programs(2) + group) * I + columns, mask=known, other=0.0)
        b_x = load_rows(x_ptr, offset, inside, columns, I).to(tl.float32)
        slope = product / rows * rstd
        b_dx -= (total / rows)[None, :] + (b_x - mean[None, :]) * slope[None, :]
    b_dx *= (weight * rstd)[None, :]
    mask = inside[:, None] & known[None, :]
    tl.store(g_ptr + offset[:, None] + columns[None, :], rounded(b_dx, g_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "parts", "rows_per_part"])
def weight_bwd_kernel(
    x_ptr,
    dy_ptr,
    part_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    rows,
    parts,
    rows_per_part,
    I: tl.constexpr,  # noqa: E741
    O: tl.constexpr,  # noqa: E741
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """dy.T @ activated(x) over one part of the rows of one group: part_ptr [groups, parts, O, I] float32."""
    input_blocks: tl.constexpr = (I + BLOCK_I - 1) // BLOCK_I
    blocks: tl.constexpr = input_blocks * ((O + BLOCK_O - 1) // BLOCK_O)
    block = tl.program_id(0) % blocks
    group_part = tl.program_id(0) // blocks
    group = group_part // parts
    first = (group_part % parts) * rows_per_part
    inputs = (block % input_blocks) * BLOCK_I + tl.arange(0, BLOCK_I)
    outputs = (block // input_blocks) * BLOCK_O + tl.arange(0, BLOCK_O)
    known = inputs < I
    mean = tl.load(mean_ptr + group * I + inputs, mask=known, other=0.0)[:, None]
    rstd = tl.load(rstd_ptr + group * I + inputs, mask=known, other=0.0)[:, None]
    weight = tl.load(weight_ptr + inputs, mask=known, other=0.0)[:, None]
    bias = tl.load(bias_ptr + inputs, mask=known, other=0.0)[:, None]
    b_dw = tl.zeros((BLOCK_I, BLOCK_O), tl.float32)
    last = tl.minimum(first + rows_per_part, rows)
    for start in range(first, last, BLOCK_M):
        local = start + tl.arange(0, BLOCK_M)
        inside = local < last
        row = (group * rows + local).to(tl.int64)
        b_x = tl.load(
            x_ptr + (row * I)[None, :] + inputs[:, None], mask=inside[None, :] & known[:, None], other=0.0
        )
        b_x = rounded(activate(b_x, mean, rstd, weight, bias), b_x.dtype)
        b_dy = load_rows(dy_ptr, row * O, inside, outputs, O)
        b_dw = multiply_add(b_x, b_dy, b_dw, PRECISION)
    part_ptr += group_part.to(tl.int64) * (I * O)
    mask = known[:, None] & (outputs < O)[None, :]
    tl.store(part_ptr + inputs[:, None] + outputs[None, :] * I, b_dw, mask=mask)


@triton.jit(do_not_specialize=["parts"])
def weight_sum_kernel(part_ptr, dw_ptr, parts, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Sum over the rows of [parts, SIZE] float32, in a fixed order."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = columns < SIZE
    tl.store(dw_ptr + columns, add_parts(part_ptr, parts, columns, known, SIZE, 16), mask=known)


class _Blocks(NamedTuple):
    """Shape of one program's tile: rows, columns, and the inner dimension's step."""

    rows: int
    columns: int
    inner: int

    @classmethod
    def of(cls, dtype: torch.dtype, columns: int, inner: int, float32: int) -> _Blocks:
        """The largest that spill no registers, `float32` columns of that dtype; few inner ones are a step."""
        most_columns, step = (float32, 32) if dtype == torch.float32 else (128, 64 if inner <= 64 else 32)
        return cls(64, _power_of_2(columns, most_columns), _power_of_2(inner, step))


def forward(
    x: Tensor,
    conv_weight: Tensor,
    norm: tuple[Tensor | None, ...],
    statistics: bool,
    stride: int,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, its mean and its biased variance [groups, O] (empty without statistics)."""
    images, inputs, height, width = x.shape
    outputs = len(conv_weight)
    x = _channels_last(x)
    norm = tuple(tensor if tensor is None else tensor.contiguous() for tensor in norm)
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    y = _empty(x, (images, outputs, out_height, out_width))
    blocks = _Blocks.of(x.dtype, outputs, inputs, float32=64)
    column_blocks = triton.cdiv(outputs, blocks.columns)
    rows = images // groups * out_height * out_width
    parts, tiles = _split(rows, blocks.rows, column_blocks * groups, x.device)
    y_mean, y_var = (
        x.new_empty((groups if statistics else 0, outputs), dtype=torch.float32) for _ in range(2)
    )
    launch(
        conv_fwd_kernel,
        (column_blocks * groups * parts,),
        x.device,
        x,
        conv_weight.contiguous(),
        y,
        *norm,
        x.new_empty((2, groups, parts, tiles, outputs), dtype=torch.float32) if statistics else None,
        counters(x.device, column_blocks * groups) if statistics else None,
        y_mean,
        y_var,
        rows,
        parts,
        tiles,
        out_height,
        out_width,
        height,
        width,
        I=inputs,
        O=outputs,
        STRIDE=stride,
        PRECISION=_precision(),
        BLOCK_M=blocks.rows,
        BLOCK_I=blocks.inner,
        BLOCK_O=blocks.columns,
        num_warps=4,
        num_stages=4,
    )
    return y, y_mean, y_var


def input_gradient(
    dy: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    norm: tuple[Tensor, ...],
    training: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of the batch norm's bias and weight per group [2, groups, I] float32."""
    x, dy = _channels_last(x), _channels_last(dy)
    norm = weight, _, mean, rstd = tuple(tensor.contiguous() for tensor in norm)
    groups, inputs = mean.shape
    outputs = len(conv_weight)
    blocks = _Blocks.of(x.dtype, inputs, outputs, float32=32)
    column_blocks = triton.cdiv(inputs, blocks.columns)
    rows = x.numel() // inputs // groups
    parts, tiles = _split(rows, blocks.rows, column_blocks * groups, x.device)
    g = _empty(x, x.shape)
    sums = x.new_empty((2, groups, inputs), dtype=torch.float32)
    launch(
        conv_bwd_kernel,
        (column_blocks * groups * parts,),
        x.device,
        dy,
        conv_weight.contiguous(),
        x,
        g,
        *norm,
        x.new_empty((2, groups, parts, tiles, inputs), dtype=torch.float32),
        counters(x.device, column_blocks * groups),
        sums,
        rows,
        parts,
        tiles,
        I=inputs,
        O=outputs,
        PRECISION=_precision(),
        BLOCK_M=blocks.rows,
        BLOCK_I=blocks.columns,
        BLOCK_O=blocks.inner,
        num_warps=4,
        num_stages=4,
    )
    block = _power_of_2(inputs, 128)
    launch(
        norm_bwd_kernel,
        (triton.cdiv(rows, 4096 // block), triton.cdiv(inputs, block), groups),
        x.device,
        g,
        x,
        weight,
        mean,
        rstd,
        sums,
        rows,
        I=inputs,
        TRAINING=training,
        BLOCK_M=4096 // block,
        BLOCK_I=block,
        num_warps=4,
    )
    return g, sums


def weight_gradient(dy: Tensor, x: Tensor, norm: tuple[Tensor, ...]) -> Tensor:
    """The gradient of the convolution's weight [O, I, 1, 1] float32."""
    x, dy = _channels_last(x), _channels_last(dy)
    norm = tuple(tensor.contiguous() for tensor in norm)
    groups, inputs = norm[-1].shape
    outputs = dy.shape[1]
    side, step = (64 if x.dtype == torch.float32 else 128), 32
    block_i, block_o = _power_of_2(inputs, side), _power_of_2(outputs, side)
    blocks = triton.cdiv(inputs, block_i) * triton.cdiv(outputs, block_o)
    rows = x.numel() // inputs // groups
    parts, tiles = _split(rows, step, blocks * groups, x.device)
    sums = x.new_empty((groups * parts, outputs, inputs), dtype=torch.float32)
    launch(
        weight_bwd_kernel,
        (blocks * groups * parts,),
        x.device,
        x,
        dy,
        sums,
        *norm,
        rows,
        parts,
        tiles * step,
        I=inputs,
        O=outputs,
        PRECISION=_precision(),
        BLOCK_M=step,
        BLOCK_I=block_i,
        BLOCK_O=block_o,
        num_warps=4,
        num_stages=4,
    )
    gradient = x.new_empty((outputs, inputs, 1, 1), dtype=torch.float32)
    size = inputs * outputs
    grid = (triton.cdiv(size, 128),)
    launch(
        weight_sum_kernel, grid, x.device, sums, gradient, groups * parts, SIZE=size, BLOCK=128, num_warps=4
    )
    return gradient


def _split(rows: int, block: int, others: int, device: torch.device) -> tuple[int, int]:
    """Number of parts, and tiles of `block` rows in each: some 4 programs per multiprocessor in all."""
    tiles = triton.cdiv(rows, block)
    # on a CPU one, so that small inputs already have several tiles in a part
    parts = min(tiles, max(1, 4 * multiprocessors(device, on_cpu=1) // others))
    per_part = triton.cdiv(tiles, parts)
    return triton.cdiv(tiles, per_part), per_part


def _precision() -> str:
    """How float32 is multiplied: as PyTorch's convolutions do it."""
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]


def _power_of_2(size: int, most: int) -> int:
    """The smallest that holds `size`, from 16, a matrix instruction's least, to `most`."""
    return min(most, max(16, triton.next_power_of_2(size)))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
