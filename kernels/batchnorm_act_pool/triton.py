"""Triton kernels of batch norm + ReLU + 3x3 max-pool of stride 2 and padding 1, and their launches.

Window (p, q) of an image covers rows 2p-1 to 2p+1 and columns 2q-1 to 2q+1; a pixel lies in up to four
windows. The statistics and the gradient's sums are batchnorm_act's: since the forward keeps x at each
window's maximum, those sums are the ones of a batch norm + ReLU at the pooled size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..batchnorm_act.triton import load_gradient_terms, load_moments, rectify
from ..runtime import launch

NO_WINNER: tl.constexpr = tl.constexpr(9)
"""Index of a window without a positive value: no gradient passes."""

_WARPS = 4
_ELEMENTS = 1024  # of a tile: one 16-byte load per thread and tap, of half precision; there are 4 or 9 taps


@triton.jit
def pooled_positions(images, height, width, BLOCK_R: tl.constexpr):
    """Pooled positions of a program in its group: whether inside, image (of all groups), row, column."""
    position = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    image = position // (height * width)
    return image < images, tl.program_id(2) * images + image, position // width % height, position % width


@triton.jit(do_not_specialize=["images", "height", "width"])
def pool_kernel(
    x_ptr,
    y_ptr,
    winner_ptr,
    index_ptr,
    mean_ptr,
    spread_ptr,
    weight_ptr,
    bias_ptr,
    images,
    height,
    width,
    eps,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TRAINING: tl.constexpr,
):
    """Output y = max over the window of relu(batch_norm(x)); x at the first maximum; its place 0 to 8.

    NaN counts as the maximum, as in torch. Half-precision values are compared before rounding.
    """
    pooled_height, pooled_width = (height + 1) // 2, (width + 1) // 2
    inside, image, p, q = pooled_positions(images, pooled_height, pooled_width, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = columns < C
    moments = tl.program_id(2) * C
    mean, rstd = load_moments(mean_ptr + moments, spread_ptr + moments, columns, channel, eps, TRAINING)
    scale = rstd * tl.load(weight_ptr + columns, mask=channel, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=channel, other=0.0)

    best = tl.full([BLOCK_R, BLOCK_C], float("-inf"), tl.float32)
    winner = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    index = tl.full([BLOCK_R, BLOCK_C], NO_WINNER, tl.int32)
    for tap in tl.static_range(9):
        h, w = 2 * p - 1 + tap // 3, 2 * q - 1 + tap % 3
        row = (image.to(tl.int64) * height + h) * width + w
        present = inside & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        mask = present[:, None] & channel[None, :]
        x = tl.load(x_ptr + row[:, None] * C + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        value = (x - mean[None, :]) * scale[None, :] + bias[None, :]
        better = mask & ((value > best) | (value != value))
        best = tl.where(better, value, best)
        winner = tl.where(better, x, winner)
        index = tl.where(better, tap, index)

    index = tl.where(best <= 0.0, NO_WINNER, index)
    row = (image.to(tl.int64) * pooled_height + p) * pooled_width + q
    offsets = row[:, None] * C + columns[None, :]
    mask = inside[:, None] & channel[None, :]
    tl.store(y_ptr + offsets, rectify(best), mask=mask)
    tl.store(winner_ptr + offsets, winner, mask=mask)
    tl.store(index_ptr + offsets, index, mask=mask)


@triton.jit
def load_window(grad_ptr, index_ptr, row, columns, mask, C: tl.constexpr):
    """Gradient and winner's index of some windows."""
    offsets = row[:, None] * C + columns[None, :]
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    return grad, tl.load(index_ptr + offsets, mask=mask, other=NO_WINNER)


@triton.jit
def won(grad, index, TAP: tl.constexpr):
    """The gradient where the window's winner is that tap, else 0."""
    return tl.where(index == TAP, grad, 0.0)


@triton.jit
def store_pixel(
    x_ptr, grad_x_ptr, g, row, columns, mask, mean, scale, a, b, C: tl.constexpr, TRAINING: tl.constexpr
):
    """The input's gradient at some pixels from that of batch norm's output, as in batchnorm_act."""
    offsets = row[:, None] * C + columns[None, :]
    if TRAINING:
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        g = g - a[None, :] - (x - mean[None, :]) * b[None, :]
    tl.store(grad_x_ptr + offsets, g * scale[None, :], mask=mask)


@triton.jit(do_not_specialize=["images", "height", "width"])
def unpool_kernel(
    grad_ptr,
    index_ptr,
    x_ptr,
    grad_x_ptr,
    mean_ptr,
    spread_ptr,
    weight_ptr,
    sums_ptr,
    images,
    height,
    width,
    eps,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TRAINING: tl.constexpr,
):
    """The input's gradient at pixels (2p, 2q) to (2p+1, 2q+1), which windows (p, q) to (p+1, q+1) cover."""
    pooled_height, pooled_width = (height + 1) // 2, (width + 1) // 2
    inside, image, p, q = pooled_positions(images, pooled_height, pooled_width, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = columns < C
    mean, scale, a, b = load_gradient_terms(
        mean_ptr,
        spread_ptr,
        weight_ptr,
        sums_ptr,
        columns,
        channel,
        tl.program_id(2),
        tl.num_programs(2),
        images * height * width,
        eps,
        C,
        TRAINING,
    )
    window = (image.to(tl.int64) * pooled_height + p) * pooled_width + q
    below, right = inside & (p + 1 < pooled_height), inside & (q + 1 < pooled_width)
    here = inside[:, None] & channel[None, :]
    grad00, index00 = load_window(grad_ptr, index_ptr, window, columns, here, C)
    mask = right[:, None] & channel[None, :]
    grad01, index01 = load_window(grad_ptr, index_ptr, window + 1, columns, mask, C)
    mask = below[:, None] & channel[None, :]
    grad10, index10 = load_window(grad_ptr, index_ptr, window + pooled_width, columns, mask, C)
    mask = (below & right)[:, None] & channel[None, :]
    grad11, index11 = load_window(grad_ptr, index_ptr, window + pooled_width + 1, columns, mask, C)

    pixel = (image.to(tl.int64) * height + 2 * p) * width + 2 * q
    below, right = inside & (2 * p + 1 < height), inside & (2 * q + 1 < width)
    g = won(grad00, index00, 4)
    store_pixel(x_ptr, grad_x_ptr, g, pixel, columns, here, mean, scale, a, b, C, TRAINING)
    g = won(grad00, index00, 5) + won(grad01, index01, 3)
    mask = right[:, None] & channel[None, :]
    store_pixel(x_ptr, grad_x_ptr, g, pixel + 1, columns, mask, mean, scale, a, b, C, TRAINING)
    g = won(grad00, index00, 7) + won(grad10, index10, 1)
    mask = below[:, None] & channel[None, :]
    store_pixel(x_ptr, grad_x_ptr, g, pixel + width, columns, mask, mean, scale, a, b, C, TRAINING)
    g = won(grad00, index00, 8) + won(grad01, index01, 6) + won(grad10, index10, 2) + won(grad11, index11, 0)
    mask = (below & right)[:, None] & channel[None, :]
    store_pixel(x_ptr, grad_x_ptr, g, pixel + width + 1, columns, mask, mean, scale, a, b, C, TRAINING)


def normalize_and_pool(
    x: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    eps: float,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled output, x at each window's maximum, and that one's index (uint8); one launch.

    `mean` and `spread` are [G, C] and the inverse deviation in training, else [C] and the variance.
    """
    y, index = pooled_like(x, x.dtype), pooled_like(x, torch.uint8)
    winner = torch.empty_like(y)
    launch(
        pool_kernel,
        _grid(y, groups),
        x.device,
        x,
        y,
        winner,
        index,
        mean,
        spread,
        weight,
        bias,
        x.shape[0] // groups,
        x.shape[2],
        x.shape[3],
        eps,
        **_blocks(x),
        TRAINING=training,
        num_warps=_WARPS,
    )
    return y, winner, index


def input_gradient(
    grad: Tensor,
    index: Tensor,
    x: Tensor,
    sums: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor,
    training: bool,
    eps: float,
    groups: int,
) -> Tensor:
    """The input's gradient from that of the pooled output and `batchnorm_act`'s sums of it; one launch."""
    grad_x = torch.empty_like(x)
    launch(
        unpool_kernel,
        _grid(grad, groups),
        x.device,
        grad,
        index,
        x,
        grad_x,
        mean,
        spread,
        weight,
        sums,
        x.shape[0] // groups,
        x.shape[2],
        x.shape[3],
        eps,
        **_blocks(x),
        TRAINING=training,
        num_warps=_WARPS,
    )
    return grad_x


def pooled_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Unset values of the pooled output's shape, in channels_last."""
    n, c, h, w = x.shape
    return torch.empty(
        (n, c, (h + 1) // 2, (w + 1) // 2),
        dtype=dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def _blocks(x: Tensor) -> dict[str, int]:
    channels = x.shape[1]
    block = min(64, triton.next_power_of_2(channels))
    return {"C": channels, "BLOCK_R": _ELEMENTS // block, "BLOCK_C": block}


def _grid(pooled: Tensor, groups: int) -> tuple[int, int, int]:
    blocks = _blocks(pooled)
    positions = pooled.numel() // pooled.shape[1] // groups
    return -(-positions // blocks["BLOCK_R"]), -(-blocks["C"] // blocks["BLOCK_C"]), groups
