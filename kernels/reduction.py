"""What the kernels share: reductions over several programs of one launch, in a fixed order.

Each program stores its part of a sum; the last one to finish (`is_last_program`) adds the parts up. It loads
them with `cache_modifier=".cg"`, past the L1 cache, which other multiprocessors' stores do not reach.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_last_program(counter_ptr, programs):
    """Whether this program is the last of `programs` to come here; the counter is then zero again."""
    tl.debug_barrier()  # every thread's stores come before this program's tick
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def add_parts(part_ptr, parts, columns, mask, stride, BLOCK: tl.constexpr):
    """Sum over the rows of [parts, stride] float32, at the given columns."""
    total = tl.zeros_like(columns).to(tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        inside = (part < parts)[:, None] & mask[None, :]
        offsets = part[:, None] * stride + columns[None, :]
        total += tl.sum(tl.load(part_ptr + offsets, mask=inside, other=0.0, cache_modifier=".cg"), axis=0)
    return total


@triton.jit
def merge_moments(
    mean_ptr, square_ptr, parts, rows, rows_per_part, columns, mask, stride, BLOCK: tl.constexpr
):
    """Mean and biased variance of `rows` values per column, from those of parts (Chan et al. 1979).

    Part p holds the values p * rows_per_part up to (p + 1) * rows_per_part, the last one what is left:
    their mean in mean_ptr [parts, stride], and the sum of their squared distances to it in square_ptr.
    """
    origin = tl.load(
        mean_ptr + columns, mask=mask, other=0.0, cache_modifier=".cg"
    )  # so that nothing cancels
    total = tl.zeros_like(columns).to(tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        inside = (part < parts)[:, None] & mask[None, :]
        offsets = part[:, None] * stride + columns[None, :]
        count = tl.minimum(rows - part * rows_per_part, rows_per_part).to(tl.float32)
        own = tl.load(mean_ptr + offsets, mask=inside, other=0.0, cache_modifier=".cg")
        total += tl.sum(tl.where(inside, (own - origin[None, :]) * count[:, None], 0.0), axis=0)
    mean = origin + total / rows
    squares = tl.zeros_like(columns).to(tl.float32)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        inside = (part < parts)[:, None] & mask[None, :]
        offsets = part[:, None] * stride + columns[None, :]
        count = tl.minimum(rows - part * rows_per_part, rows_per_part).to(tl.float32)
        own = tl.load(mean_ptr + offsets, mask=inside, other=0.0, cache_modifier=".cg")
        within = tl.load(square_ptr + offsets, mask=inside, other=0.0, cache_modifier=".cg")
        between = count[:, None] * (own - mean[None, :]) * (own - mean[None, :])
        squares += tl.sum(tl.where(inside, within + between, 0.0), axis=0)
    return mean, squares / rows
