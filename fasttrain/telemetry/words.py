"""Metrics and times in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import encodable


def metrics_line(step: int, metrics: Mapping[str, Any]) -> str:
    """A whole line for the log."""
    mfu = "" if metrics["mfu"] is None else f"  MFU {100 * metrics['mfu']:.1f} %"
    subnets = f"subnets {metrics['subnet_loss']:.4f}  " if metrics["subnet_loss"] else ""
    return (
        f"step {step}  loss {metrics['loss']:.4f}  main {metrics['main_loss']:.4f}  "
        f"{subnets}Top-1 {metrics['train_top1']:.1f} %  lr {metrics['lr']:.4g}  "
        f"{metrics['images_per_second']:.1f} images/s  data wait {100 * metrics['data_wait']:.1f} %{mfu}  "
        f"ETA {duration(metrics['eta_seconds'])}"
    )


def short_line(metrics: Mapping[str, Any]) -> str:
    """What fits beside a progress bar."""
    wait = 100 * metrics["data_wait"]
    return (
        f"loss {metrics['loss']:.3f} {metrics['images_per_second']:.0f} img/s wait {wait:.0f} % "
        f"ETA {duration(metrics['eta_seconds'])}"
    )


def printable(text: str) -> str:
    """A name without what would move a terminal's cursor; what cannot be encoded is escaped."""
    return "".join(each if each.isprintable() else "?" for each in encodable(text))


def duration(seconds: float) -> str:
    """To two units: 45s, 3m20s, 2h05m, 4d03h."""
    whole = max(0, round(seconds))
    for unit, size, part, below in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // below:02d}{part}"
    return f"{whole}s"
