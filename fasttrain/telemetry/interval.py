"""What the steps between two reports have in common: sums on the device, gathered over all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .. import distributed
from ..methods import Pass
from ..step import StepResult
from . import gpus
from .gpus import Sampler
from .stopwatch import StepClock, Stopwatch

_SUMS = ("loss", "main_loss", "subnet_loss", "hits", "gradient_norm", "finite")
"""What is summed up on the device."""

Meter = Callable[[Sequence[Pass]], float]
"""FLOPs of a step's passes."""


class Interval:
    """Sums over the steps between two reports, kept on the device until they are read."""

    def __init__(
        self, device: torch.device, *, meter: Meter | None = None, sampler: Sampler | None = None
    ) -> None:
        """Start.

        Args:
            device: of the losses.
            meter: counts the steps' FLOPs; None where nobody asks for them.
            sampler: of the process's GPU.
        """
        self.device, self.meter, self.sampler = device, meter, sampler
        self.watch, self.clock = Stopwatch(), StepClock(device)
        self.restart()

    def restart(self) -> None:
        """Forget the sums."""
        self.steps = self.images = 0
        self.flops = 0.0
        self.sums = torch.zeros(len(_SUMS), device=self.device)
        self.lr = 0.0
        self.clock.restart()

    def add(self, result: StepResult, images: int) -> None:
        """Take one step in."""
        loss, norm = result.loss, result.gradient_norm
        subnets = loss.subnets.mean() if len(loss.subnets) else loss.main.new_zeros(())
        finite = norm.isfinite()  # fp16's overflows, whose steps are left out, have no norm
        parts = (loss.total, loss.main, subnets, loss.hits[0], norm.where(finite, 0), finite)
        self.sums += torch.stack([part.float() for part in parts])
        self.steps += 1
        self.images += images
        self.lr = result.lr
        if self.meter is not None:
            self.flops += self.meter(result.passes)
        self.clock.tick()

    def collect(self) -> dict[str, Any]:
        """Means over all processes; the one place where the host waits for the device.

        Returns:
            What a record of training holds, and besides `images` and `seconds` of all processes.
        """
        own = dict(zip(_SUMS, self.sums.tolist(), strict=True))
        seconds, own["wait"] = self.watch.lap()
        milliseconds = self.clock.milliseconds()
        gpu = {}
        if self.device.type == "cuda":
            gpu = gpus.unknown() if self.sampler is None else self.sampler.take()
        own |= {"steps": self.steps, "images": self.images}
        ranks = distributed.gather_over_processes(own | gpu, self.device)

        def total(name: str) -> float:
            return math.fsum(rank[name] for rank in ranks)

        steps, images, finite = total("steps"), total("images"), total("finite")
        rate = images / seconds
        metrics: dict[str, Any] = {
            "loss": total("loss") / steps,
            "loss_max": _largest([rank["loss"] / rank["steps"] for rank in ranks]),
            "main_loss": total("main_loss") / steps,
            "subnet_loss": total("subnet_loss") / steps,
            "train_top1": 100 * total("hits") / images,
            "gradient_norm": total("gradient_norm") / finite if finite else math.nan,
            "lr": self.lr,
            "images_per_second": rate,
            "images_per_second_per_process": rate / len(ranks),
            "step_ms": 1e3 * seconds / self.steps,
            "step_ms_p50": float(np.quantile(milliseconds, 0.5)),
            "step_ms_p95": float(np.quantile(milliseconds, 0.95)),
            "data_wait": max(rank["wait"] for rank in ranks),
            "flops_per_image": self.flops / self.images,
            "images": int(images),
            "seconds": seconds,
        }
        if gpu and not all(math.isnan(rank["utilisation"]) for rank in ranks):
            metrics |= gpus.metrics(ranks, rate)
        return metrics


def _largest(values: Sequence[float]) -> float:
    """The largest; NaN if one is."""
    return math.nan if any(map(math.isnan, values)) else max(values)
