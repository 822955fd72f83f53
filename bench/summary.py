"""What a benchmark prints: its rows condensed to one line per mode."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fasttrain.telemetry.peak import matrix_rate

from .rows import Row

Values = dict[str, dict[str, list[float]]]


def by_mode(rows: Sequence[Row]) -> Values:
    """The rows' values, by mode and metric."""
    values: Values = defaultdict(lambda: defaultdict(list))
    for row in rows:
        values[row["mode"]][row["metric"]].append(float(row["value"]))
    return values


def summarize(rows: Sequence[Row], batch: int) -> list[dict[str, str]]:
    """One line per mode: milliseconds, and ratios of means to plain training and to the published step.

    MFU: FLOPs that the step ran (not those of the published step) over what the GPU's matrix units could.

    `less state`: the peak memory that a step adds to weights, momentum and images, over that of CT.
    """
    values = by_mode(rows)
    device = str(rows[0]["device"])
    rate = matrix_rate(device) or math.nan
    return [_line(values, mode, batch, rate) for mode in values]


def _line(values: Values, mode: str, batch: int, rate: float) -> dict[str, str]:
    own = values[mode]
    seconds = own["seconds"]
    p20, p50, p80 = 1e3 * np.quantile(seconds, (0.2, 0.5, 0.8))
    return {
        "mode": mode,
        "n": str(len(seconds)),
        "mean ms": f"{1e3 * np.mean(seconds):.1f}",
        "p20": f"{p20:.1f}",
        "p50": f"{p50:.1f}",
        "p80": f"{p80:.1f}",
        "/ct": _ratio(mean(values, mode, "seconds"), mean(values, "ct", "seconds")),
        "naive/": _ratio(mean(values, "naive", "seconds"), mean(values, mode, "seconds")),
        "img/s": f"{batch / np.mean(seconds):.1f}",
        "FLOPs/ct": _ratio(mean(values, mode, "flops"), mean(values, "ct", "flops")),
        "calls": f"{np.mean(own['block_calls']):.1f}" if own["block_calls"] else "-",
        "peak MiB": f"{np.mean(own['peak_bytes']) / 2**20:.0f}" if own["peak_bytes"] else "-",
        "MFU": _utilisation(own, rate),
        "W": _mean_text(own["watts"], "{:.0f}"),
        "J/img": _mean_text(own["joules_per_image"], "{:.3f}"),
        "launches": _mean_text(own["launches"], "{:.0f}"),
        "peak/ct": _ratio(mean(values, mode, "peak_bytes"), mean(values, "ct", "peak_bytes")),
        "less state": _ratio(_step_bytes(values, mode), _step_bytes(values, "ct")),
    }


def _utilisation(own: dict[str, list[float]], rate: float) -> str:
    if not own["flops"] or math.isnan(rate):
        return "-"
    return f"{100 * np.mean(own['flops']) / np.mean(own['seconds']) / rate:.1f} %"


def _mean_text(values: Sequence[float], form: str) -> str:
    return form.format(np.mean(values)) if values and not math.isnan(values[0]) else "-"


def mean(values: Values, mode: str, metric: str) -> float | None:
    """The mean of a mode's metric; None where it was not measured."""
    measured = values[mode][metric] if mode in values else []
    return float(np.mean(measured)) if measured else None


def _step_bytes(values: Values, mode: str) -> float | None:
    peak, state = mean(values, mode, "peak_bytes"), mean(values, mode, "state_bytes")
    return None if peak is None or state is None else peak - state


def _ratio(over: float | None, under: float | None) -> str:
    return "-" if over is None or not under else f"{over / under:.2f}"


def table(lines: Sequence[dict[str, str]]) -> str:
    """Lines of equal keys as aligned text, the first key to the left, without columns that have no value."""
    columns = [name for name in lines[0] if any(line[name] != "-" for line in lines)]
    rows = [columns, *([line[name] for name in columns] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_aligned(row, widths) for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *cells[1:]])
