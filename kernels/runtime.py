"""Where Triton kernels run, how they are launched, and how operations are registered with torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default until 3.9, which asks to say so

try:
    import triton
except ImportError:  # not packaged for every platform; the references need nothing but torch
    triton = None

Kernels = Literal["triton", "reference"]
"""Which implementation of an operation runs: its Triton kernels, or plain PyTorch."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels read and write; they compute in float32."""

_LIBRARY = torch.library.Library("fasttrain", "FRAGMENT")

_counters: dict[tuple[torch.device, int], Tensor] = {}


def runs_triton(device: torch.device) -> bool:
    """Whether Triton kernels run on a device's tensors: CUDA, or a CPU under Triton's interpreter."""
    return triton is not None and (device.type == "cuda" or bool(triton.knobs.runtime.interpret))


def chooses_triton(kernels: Kernels, *tensors: Tensor) -> bool:
    """Whether an operation on these tensors runs its Triton kernels: if asked for and the device has them.

    Raises:
        ValueError: an unknown choice, or tensors that the kernels do not take.
    """
    if kernels not in ("triton", "reference"):
        raise ValueError(f"kernels is {kernels!r}; allowed: triton, reference")
    if kernels == "reference" or not runs_triton(tensors[0].device):
        return False
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"a tensor is {tensor.dtype}; allowed for Triton kernels: "
                f"{', '.join(map(str, DTYPES))}; kernels='reference' takes torch.float64 too"
            )
    return True


def launch(kernel: Any, grid: Sequence[int], device: torch.device, *args: Any, **options: Any) -> None:
    """Launch a Triton kernel on a device, which need not be the current one."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[tuple(grid)](*args, **options)
    else:
        kernel[tuple(grid)](*args, **options)


def counters(device: torch.device, count: int) -> Tensor:
    """At least `count` zeros, int32, for `is_last_program`, which leaves them zero: kept per stream.

    A CUDA graph gets zeros of its own, since its replays may run beside other streams.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    kept = _counters.get((device, stream))
    if kept is None or len(kept) < count:
        kept = _counters[device, stream] = torch.zeros(max(count, 1024), dtype=torch.int32, device=device)
    return kept


@cache
def multiprocessors(device: torch.device, on_cpu: int) -> int:
    """How many a GPU has; `on_cpu`: what launches are made for where the interpreter runs them."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else on_cpu


def register(
    name: str,
    schema: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    autograd: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define `torch.ops.fasttrain.<name>`, one node to the compiler; the operation to call.

    `define` and `impl` with an `autograd.Function` cost the host least: forward 13 us, 87 us with the
    backward, against 23 and 126 us of `custom_op` (an empty operation, torch 2.15, AMD EPYC).

    Args:
        name: of the operation.
        schema: arguments and results, as torch writes them.
        forward: on real tensors, without gradients.
        fake: on tensors without data: the results' shapes, dtypes and strides.
        autograd: `apply` of the `autograd.Function` whose forward runs the operation again inside
            `below_autograd()`; None: no gradient.
    """
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fasttrain::{name}", fake, lib=_LIBRARY)
    if autograd is not None:
        _LIBRARY.impl(name, autograd, "Autograd")
    return getattr(torch.ops.fasttrain, name).default


def below_autograd() -> Any:
    """The context in which a registered operation's autograd.Function runs the operation itself."""
    return torch._C._AutoDispatchBelowAutograd()
