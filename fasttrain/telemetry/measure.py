"""What one call costs: seconds and peak memory."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own notices are not the user's


def synchronize(device: torch.device) -> None:
    """Wait for the device's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """Duration of one call: CUDA events on a GPU, the monotonic clock on a CPU."""
    synchronize(device)
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        synchronize(device)
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes behind some tensors, shared storage counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def peak_bytes(
    device: torch.device, call: Callable[[], object], state: Iterable[Tensor] = ()
) -> tuple[int, int]:
    """Peak memory of one call, and what of it lived before.

    On a GPU all that its allocator holds counts; on a CPU `state` and all that the call allocates through
    PyTorch's allocator (oneDNN's own scratch memory does not).

    Args:
        device: where the call works.
        call: the work; what it allocates is counted.
        state: tensors that live before it: weights, momentum, images.

    Returns:
        Peak bytes, state included; the state's bytes.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device), before
    before = storage_bytes(state)
    return before + _peak_of_events(_allocator_events(call)), before


def _peak_of_events(events: Iterable[int]) -> int:
    held = peak = 0
    for size in events:
        held += size
        peak = max(peak, held)
    return peak


def _allocator_events(call: Callable[[], object]) -> Iterator[int]:
    """Bytes of each allocation (positive) and release (negative) of a call, in order of time.

    Releases of what was allocated before are not reported.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    for event in sorted(memory, key=lambda event: event["ts"]):
        if event["args"]["Device Type"] == 0:
            yield event["args"]["Bytes"]
