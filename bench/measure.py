"""Measuring one call: seconds, joules, peak memory; and the precision a device works in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from fasttrain import hardware
from fasttrain.errors import ConfigError
from fasttrain.telemetry import nvml
from fasttrain.telemetry.measure import peak_bytes, seconds, storage_bytes, synchronize

__all__ = [
    "PRECISIONS",
    "choose_device",
    "choose_precision",
    "energy",
    "launches",
    "peak_bytes",
    "seconds",
    "storage_bytes",
    "synchronize",
    "use_backends",
]

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
