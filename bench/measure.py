"""Measuring one call: seconds, joules, peak memory; and the precision a device works in."""

from __future__ import annotations

import gc
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fasttrain import hardware
from fasttrain.errors import ConfigError
from fasttrain.telemetry import nvml

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own notices are not the bench's

PRECISIONS = ("auto", "bf16", "fp16", "fp32")


def choose_device(name: str) -> torch.device:
    """The device called `name`, or CUDA where there is one.

    Raises:
        ConfigError: CUDA asked for where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but torch sees no GPU; allowed here: cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def choose_precision(name: str, device: torch.device) -> str:
    """`name`, or for `auto` what the trainer would choose."""
    return hardware.choose_precision(name, device).name


def use_backends(*, benchmark: bool) -> None:
    """Set cuDNN up for the next call: TF32 for float32 work, and whether it times its algorithms."""
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "tf32"


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


def launches(call: Callable[[], object]) -> int:
    """Kernels, copies and fills that one call puts on the GPU."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


def energy(device: torch.device, call: Callable[[], object], least: float = 2.0) -> tuple[float, float, int]:
    """Joules that a GPU takes for a call repeated for at least so many seconds; the seconds; the calls.

    Its counter moves every 20 to 100 milliseconds. NaN joules where there is no counter.
    """
    read = _energy_counter(device)
    synchronize(device)
    before, begin, calls = read(), time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < least:
        call()
        synchronize(device)
        calls += 1
    return read() - before, elapsed, calls


def _energy_counter(device: torch.device) -> Callable[[], float]:
    try:
        return nvml.find(device).joules
    except nvml.Unavailable:  # time is measured all the same
        return lambda: math.nan


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
