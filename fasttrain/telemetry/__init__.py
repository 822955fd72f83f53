"""What a run tells: its folder, log and progress, metrics, GPUs, sinks and traces, and views of them."""

from __future__ import annotations

from .files import write_json
from .folder import RunFolder
from .interval import Interval
from .log import Log
from .reporter import Reporter
from .sinks import check_sinks
from .stopwatch import Stopwatch

__all__ = ["Interval", "Log", "Reporter", "RunFolder", "Stopwatch", "check_sinks", "write_json"]
