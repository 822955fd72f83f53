"""What the steps between two reports have in common: sums on the device, gathered over all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import distributed
from ..methods import Pass
from ..step import StepResult
from . import gpus
from .gpus import Sampler
from .stopwatch import StepClock, Stopwatch

_SUMS = ("loss", "main_loss", "subnet_loss", "hits", "gradient_norm", "finite", "counted")
"""What is summed up on the device; `counted`: steps whose losses are in the sums."""

Meter = Callable[[Sequence[Pass]], float]
"""FLOPs of a step's passes."""


class Interval:
    """Sums over the steps between two reports, kept on the device until they are read."""

    def __init__(
        self,
        device: torch.device,
        *,
        meter: Meter | None = None,
        sampler: Sampler | None = None,
        lenient: bool = False,
    ) -> None:
        """Start.

        Args:
            device: of the losses.
            meter: counts the steps' FLOPs; None where nobody asks for them.
            sampler: of the process's GPU.
            lenient: leave losses that are not finite out of the sums.
        """
        self.device, self.meter, self.sampler, self.lenient = device, meter, sampler, lenient
        self.watch, self.clock = Stopwatch(), StepClock(device)
        self.restart()

    def restart(self) -> None:
        """Forget the sums."""
        self.steps = self.images = 0
        self.flops = 0.0
        self.sums = torch.zeros(len(_SUMS), device=self.device)
        self.lr = 0.0
        self.clock.restart()

    def begin(self) -> None:
        """Training goes on now, after an evaluation or a start."""
        self.watch.begin()
        self.clock.restart()

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, as plain numbers and tensors."""
        return {
            "sums": self.sums.cpu(),
            "steps": self.steps,
            "images": self.images,
            "flops": self.flops,
            "lr": self.lr,
            "watch": list(self.watch.read()) if self.steps else [0.0, 0.0],
        }

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]], processes: int) -> None:
        """Take the sums up again.

        Args:
            states: this process's own, or those of all processes there were, of which each takes the mean.
            processes: among which the images are dealt; 1 with this process's own.
        """
        self.sums.copy_(torch.stack([state["sums"] for state in states]).mean(0))
        share = len(states) / processes
        self.sums[_SUMS.index("hits")] *= share
        self.steps, self.lr = int(states[0]["steps"]), float(states[0]["lr"])
        self.images = round(sum(int(state["images"]) for state in states) / processes)
        self.flops = float(states[0]["flops"]) * share
        self.watch.carry(*states[0]["watch"])

    def add(self, result: StepResult, images: int) -> None:
        """Take one step in."""
        loss, norm = result.loss, result.gradient_norm
        subnets = loss.subnets.mean() if len(loss.subnets) else loss.main.new_zeros(())
        finite = norm.isfinite()  # fp16's overflows, whose steps are left out, have no norm
        losses, counted = (loss.total, loss.main, subnets), torch.ones_like(finite)
        if self.lenient:
            counted = loss.total.isfinite()
            losses = tuple(part.where(counted, 0) for part in losses)  # type: ignore[assignment]
        parts = (*losses, loss.hits[0], norm.where(finite, 0), finite, counted)
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
        own["images"] = self.images
        ranks = distributed.gather_over_processes(own | gpu, self.device)

        def total(name: str) -> float:
            return math.fsum(rank[name] for rank in ranks)

        counted, images, finite = total("counted"), total("images"), total("finite")
        rate = images / seconds
        metrics: dict[str, Any] = {
            "loss": _mean(total("loss"), counted),
            "loss_max": _largest([_mean(rank["loss"], rank["counted"]) for rank in ranks]),
            "main_loss": _mean(total("main_loss"), counted),
            "subnet_loss": _mean(total("subnet_loss"), counted),
            "train_top1": 100 * total("hits") / images,
            "gradient_norm": _mean(total("gradient_norm"), finite),
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


def _mean(total: float, count: float) -> float:
    """NaN of nothing."""
    return total / count if count else math.nan


def _largest(values: Sequence[float]) -> float:
    """The largest; NaN if one is."""
    return math.nan if any(map(math.isnan, values)) else max(values)
