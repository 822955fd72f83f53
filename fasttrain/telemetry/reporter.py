"""What a run tells while it trains: to its folder, to the log, and to whom else it was asked to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ..config import Config
from ..distributed import Process
from ..flops import meta_network, passes_flops
from ..hardware import Precision
from .files import now
from .folder import RunFolder
from .gpus import start_sampler
from .interval import Interval, Meter
from .log import Log
from .peak import matrix_rate
from .sinks import Sink, numbers, open_sinks
from .stopwatch import Estimate
from .trace import Tracer
from .words import metrics_line, short_line


class Reporter:
    """Metrics of one process; only the main one writes."""

    def __init__(
        self,
        config: Config,
        process: Process,
        folder: RunFolder,
        log: Log,
        *,
        classes: int,
        precision: Precision,
        steps_per_epoch: int,
        step: int,
    ) -> None:
        """Start to watch the GPU, and open what the configuration asks for.

        Args:
            config: of the run.
            process: this one.
            folder: exists.
            log: of this process.
            classes: outputs of the network.
            precision: of its forward pass.
            steps_per_epoch: global steps.
            step: global steps done.
        """
        self.process, self.folder, self.log = process, folder, log
        self.lenient = config.run.skip_nonfinite > 0
        self.estimate = Estimate(_total_steps(config, steps_per_epoch))
        self.sampler, self.unsampled = start_sampler(process.device)
        self.peak: float | None = None
        if process.device.type == "cuda":
            name = torch.cuda.get_device_name(process.device)
            self.peak = matrix_rate(name, precision.name, config.run.tf32)
        self.meter: Meter | None = None
        self.sinks: list[Sink] = []
        window = ""
        if process.is_main:
            self.meter = partial(passes_flops, meta_network(config.model.name, classes))
            self.sinks = open_sinks(config, folder.path, step)
            window = config.run.profile
        self.tracer = Tracer(window, folder.path / "trace", process.device)

    def announce(self) -> None:
        """Say what will be missing."""
        if self.process.device.type == "cuda" and self.unsampled:
            self.log.line(f"no telemetry of the GPU: {self.unsampled}")

    def interval(self) -> Interval:
        """Sums between two reports, empty."""
        return Interval(self.process.device, meter=self.meter, sampler=self.sampler, lenient=self.lenient)

    def next_step(self) -> None:
        """To be called before each step."""
        self._try("trace", lambda: self._say(self.tracer.next_step()))

    def end_epoch(self) -> None:
        """Training pauses: the progress bar and a trace end here, so that no evaluation is traced."""
        self.log.end_epoch()
        self._try("trace", lambda: self._say(self.tracer.close()))

    def train(self, position: Mapping[str, int], metrics: Mapping[str, Any]) -> None:
        """Tell the metrics of the steps since the last report.

        Args:
            position: of the run.
            metrics: from `Interval.collect`.
        """
        step = position["global_step"]
        told = {name: value for name, value in metrics.items() if name not in ("images", "seconds")}
        told["mfu"] = None
        if self.peak is not None:
            rate = metrics["flops_per_image"] * metrics["images_per_second_per_process"]
            told["mfu"] = rate / self.peak
        told["eta_seconds"] = self.estimate.remaining(step, metrics["step_ms"] / 1e3)
        self.record("train", position, told)
        self.log.metrics(metrics_line(step, told), short_line(told))

    def record(self, kind: str, position: Mapping[str, int], values: Mapping[str, Any]) -> None:
        """Add a record to metrics.jsonl and its numbers elsewhere; what cannot be written is a warning."""
        if not self.process.is_main:
            return
        try:
            self.folder.record(kind, **position, time=now(), **values)
        except OSError as error:  # a full disk
            self.log.line(f"warning: metrics.jsonl lacks a record: {error}")
        flat = numbers(kind, values)
        for sink in list(self.sinks):
            if not self._try(type(sink).__name__, partial(sink.write, flat, position["global_step"])):
                self.sinks.remove(sink)

    def close(self, state: str) -> None:
        """The run ended in a state of status.json."""
        self._say(self.tracer.missed())
        for sink in self.sinks:
            self._try(type(sink).__name__, partial(sink.close, state))
        if self.sampler is not None:
            self.sampler.close()

    def _say(self, words: str) -> None:
        if words:
            self.log.line(words)

    def _try(self, what: str, call: Callable[[], object]) -> bool:
        """Whether a call did what it should; what other packages fail at is not worth a run."""
        try:
            call()
        except Exception as error:
            self.log.line(f"warning: {what}: {type(error).__name__}: {error}")
            return False
        return True


def _total_steps(config: Config, steps_per_epoch: int) -> int:
    """Global steps of a whole run."""
    total = config.run.epochs * steps_per_epoch
    return min(total, config.run.max_steps) if config.run.max_steps else total
