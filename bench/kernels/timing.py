"""Timing operations on a GPU: device time, host time, kernel launches, peak memory."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from .. import measure
from ..case import Case
from ..rows import PLACE, Row, Rows, default_output, environment
from ..summary import table

COLUMNS = ("bench", "op", "shape", "implementation", "metric", "p20", "p50", "p80", "unit", "triton", *PLACE)

_COPIED = 2**29  # bytes: several times any L2 cache
_FILL = 5_000_000  # clock cycles of the kernel behind which the host queues its calls
_WARMUP = 3
_MOST_SETS = 16


def measure_operations(
    modules: dict[str, ModuleType], device: torch.device, calls: int, output: Path | None
) -> None:
    """Measure every case of every operation; rows are written after each case, a table at the end.

    Args:
        modules: operation to its module of this package.
        device: a GPU.
        calls: timed calls of each implementation.
        output: CSV file, or None for the default one.
    """
    import triton

    rows = Rows(
        output or default_output("kernels", device),
        COLUMNS,
        {"bench": "kernels", "triton": triton.__version__} | environment(device),
    )
    rate = copy_rate(device)
    rows.add(
        op="copy", shape=f"{_COPIED} B", implementation="torch", metric="rate", p50=rate, unit="B/s", n=calls
    )
    rows.write()
    lines: list[dict[str, str]] = []
    for name, module in modules.items():
        for case in module.cases(device):
            lines += _measure_case(name, case, device, calls, rate, rows)
            rows.write()
            gc.collect()
            torch.cuda.empty_cache()
    print(f"copy: {rate / 1e9:.0f} GB/s, bytes read and written")
    print(table(lines))
    print(f"{len(rows.kept)} rows: {rows.path}")


def copy_rate(device: torch.device) -> float:
    """Bytes read and written per second by a large copy on the device."""
    source = torch.randint(256, (_COPIED,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _device_seconds([lambda: target.copy_(source)] * 20)
    return 2 * _COPIED / float(np.median(seconds))


def _measure_case(
    name: str, case: Case, device: torch.device, calls: int, rate: float, rows: Rows
) -> Iterator[dict[str, str]]:
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    sets = [case.prepare() for _ in range(min(_MOST_SETS, 2 + math.ceil(2 * cache / case.moved)))]
    eager = math.nan
    for implementation, call in case.calls.items():
        try:
            values = _measure_call(call, sets, device, calls)
        except torch.OutOfMemoryError:
            print(f"{name}, {case.shape}, {implementation}: out of memory, left out")
            continue
        for metric, (unit, measured) in values.items():
            p20, p50, p80 = np.quantile(measured, (0.2, 0.5, 0.8))
            rows.add(
                op=name,
                shape=case.shape,
                implementation=implementation,
                metric=metric,
                p20=p20,
                p50=p50,
                p80=p80,
                unit=unit,
                n=len(measured),
            )
        rows.add(
            op=name, shape=case.shape, implementation=implementation, metric="moved", p50=case.moved, unit="B"
        )
        seconds = float(np.median(values["seconds"][1]))
        eager = seconds if implementation == "eager" else eager
        yield _line(name, case, implementation, values, seconds, eager, rate)


def _measure_call(
    call: Callable[[Any], Any], sets: list[Any], device: torch.device, calls: int
) -> dict[str, tuple[str, list[float]]]:
    """Metric to unit and values."""
    for index in range(_WARMUP):
        call(sets[index % len(sets)])
    turns = [partial(call, sets[index % len(sets)]) for index in range(calls)]
    peak, before = measure.peak_bytes(device, turns[0])
    return {
        "seconds": ("s", _device_seconds(turns)),
        "host_seconds": ("s", _host_seconds(turns)),
        "launches": ("kernels", [measure.launches(turns[0])]),
        "peak_bytes": ("B", [peak - before]),
    }


def _device_seconds(turns: Sequence[Callable[[], Any]]) -> list[float]:
    """Device time of each call. The device is kept busy first, so that it never waits for the host."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in turns]
    torch.cuda.synchronize()
    for turn, (start, end) in zip(turns, events, strict=True):
        torch.cuda._sleep(_FILL)
        start.record()
        turn()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in events]


def _host_seconds(turns: Sequence[Callable[[], Any]]) -> list[float]:
    """How long the host takes to queue each call, on an idle device."""
    seconds = []
    for turn in turns:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        turn()
        seconds.append(time.perf_counter() - begin)
    torch.cuda.synchronize()
    return seconds


def _line(
    name: str,
    case: Case,
    implementation: str,
    values: dict[str, tuple[str, list[float]]],
    seconds: float,
    eager: float,
    rate: float,
) -> dict[str, str]:
    own: Row = {metric: float(np.median(measured)) for metric, (_, measured) in values.items()}
    return {
        "operation": name,
        "shape": case.shape,
        "by": implementation,
        "us": f"{1e6 * seconds:.1f}",
        "eager/": "-" if math.isnan(eager) else f"{eager / seconds:.2f}",
        "GB/s": f"{case.moved / seconds / 1e9:.0f}",
        "of copy": f"{100 * case.moved / seconds / rate:.0f} %",
        "launches": f"{own['launches']:.0f}",
        "host us": f"{1e6 * own['host_seconds']:.0f}",
        "peak MiB": f"{own['peak_bytes'] / 2**20:.1f}",
    }
