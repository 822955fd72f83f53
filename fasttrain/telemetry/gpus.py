"""The GPUs of a run, watched by a thread in each process and summed up over all processes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from . import nvml
from .nvml import SLOWDOWNS, Gpu, Sample

SECONDS = 1.0
"""Between two samples."""

FIELDS = ("utilisation", "memory", "watts", "celsius", "mhz", *SLOWDOWNS.values())
"""What `Sampler.take` tells of a GPU: the mean since the last call, memory and temperature their largest;
of each slowdown the share of samples in which it was on."""


class Sampler:
    """Samples one GPU in a thread, so that a slow driver holds nothing up."""

    def __init__(self, gpu: Gpu, seconds: float = SECONDS) -> None:
        """Start.

        Args:
            gpu: closed with the sampler.
            seconds: between two samples.
        """
        self.gpu, self.seconds = gpu, seconds
        self.samples: list[tuple[float, Sample]] = []
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._watch, name="nvml", daemon=True)
        self.thread.start()

    def take(self) -> dict[str, float]:
        """`FIELDS` since the last call; NaN is unknown."""
        with self.lock:
            samples, self.samples = self.samples, self.samples[-1:]  # the last: where energy goes on
        return summarize(samples)

    def close(self) -> None:
        """End the thread; one that a driver holds is left behind."""
        self.stopping.set()
        self.thread.join(timeout=5)
        if not self.thread.is_alive():
            self.gpu.close()

    def _watch(self) -> None:
        while not self.stopping.is_set():
            sample = self.gpu.sample()
            with self.lock:
                self.samples.append((time.monotonic(), sample))
            self.stopping.wait(self.seconds)


def start_sampler(device: torch.device) -> tuple[Sampler | None, str]:
    """A sampler of a process's GPU; or None, and why."""
    try:
        return Sampler(nvml.find(device)), ""
    except nvml.Unavailable as error:
        return None, str(error)


def summarize(samples: Sequence[tuple[float, Sample]]) -> dict[str, float]:
    """`FIELDS` of samples with their times, the first of which an earlier call had, if there are more."""
    if not samples:
        return unknown()
    own = [sample for _, sample in samples[1:] or samples]
    return {
        "utilisation": fmean(each.utilisation for each in own),
        "memory": max(each.memory for each in own),
        "watts": _watts(samples),
        "celsius": max(each.celsius for each in own),
        "mhz": fmean(each.mhz for each in own),
        **{name: fmean(bool(each.slowdowns & bit) for each in own) for bit, name in SLOWDOWNS.items()},
    }


def unknown() -> dict[str, float]:
    """`FIELDS` of a GPU of which nothing is known."""
    return dict.fromkeys(FIELDS, math.nan)


def _watts(samples: Sequence[tuple[float, Sample]]) -> float:
    """Mean power: by the energy counter where there is one, else of the samples."""
    (begin, first), (end, last) = samples[0], samples[-1]
    counted = (last.joules - first.joules) / (end - begin) if end > begin else math.nan
    return fmean(sample.watts for _, sample in samples) if math.isnan(counted) else counted


def metrics(gpus: Sequence[Mapping[str, float]], images_per_second: float) -> dict[str, object]:
    """What a record tells of all GPUs of a run, one per process.

    Args:
        gpus: `FIELDS` of each.
        images_per_second: of the whole run.
    """

    def values(name: str) -> list[float]:
        return [gpu[name] for gpu in gpus]

    watts = sum(values("watts"))
    slowdowns = {name: fmean(values(name)) for name in SLOWDOWNS.values()}
    return {
        "gpu_utilisation": fmean(values("utilisation")),
        "gpu_memory_gib": max(values("memory")) / 2**30,
        "gpu_watts": watts,
        "gpu_celsius": max(values("celsius")),
        "gpu_mhz": fmean(values("mhz")),
        "gpu_slowdowns": {name: share for name, share in slowdowns.items() if share > 0},
        "joules_per_image": watts / images_per_second,
    }
