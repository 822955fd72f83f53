"""A run's figures, out of its records: accuracy, subnets, speed, energy. None is: not known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from ..recipes import published_top1
from ..telemetry.records import Record
from .reading import RunData, number


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of the main network on the validation images, percent: the last evaluation's, and the best one.

    Attributes:
        published: what the recipe states as published, percent.
    """

    top1: float | None
    top5: float | None
    loss: float | None
    images: float | None
    best: float | None
    best_epoch: float | None
    published: float | None


def accuracy(run: RunData) -> Accuracy:
    """Of a run; all None where nothing was evaluated."""
    evaluations = run.of("evaluation")
    last: Record = evaluations[-1] if evaluations else {}
    best = max(evaluations, key=lambda each: number(each.get("top1")) or -1, default={})
    stated = published_top1(str(run.config.get("recipe", "")))
    return Accuracy(
        top1=number(last.get("top1")),
        top5=number(last.get("top5")),
        loss=number(last.get("loss")),
        images=number(last.get("images")),
        best=number(best.get("top1")),
        best_epoch=number(best.get("epoch")),
        published=stated,
    )


@dataclass(frozen=True, slots=True)
class Subnets:
    """Top-1 of many subnets of a run, percent.

    Attributes:
        statistics: whose batch-norm statistics they ran with.
        depths: blocks per stage of each.
        top1: of each.
        main: the main network's; None: not known.
        source: the file they come from.
    """

    statistics: str
    depths: list[tuple[int, ...]]
    top1: list[float]
    main: float | None
    source: str

    @property
    def whose(self) -> str:
        """The batch-norm statistics, in words."""
        return {"reestimated": "their own", "main": "the main network's"}.get(
            self.statistics, self.statistics
        )

    @property
    def mean(self) -> float:
        """Over the subnets."""
        return fmean(self.top1)

    @property
    def deviation(self) -> float:
        """Over the subnets."""
        return pstdev(self.top1)

    @property
    def ranked(self) -> list[tuple[float, tuple[int, ...]]]:
        """Top-1 and depths, worst first."""
        return sorted(zip(self.top1, self.depths, strict=True))


def subnets(run: RunData) -> list[Subnets]:
    """The last report of each kind of statistics; those that hold something else are left out."""
    main = accuracy(run).top1
    latest: dict[str, Subnets] = {}
    for record in run.of("subnets"):
        depths, top1 = record.get("depths"), record.get("top1")
        if not isinstance(depths, list) or not isinstance(top1, list) or len(depths) != len(top1):
            continue
        pairs = [
            (tuple(int(each) for each in blocks), value)
            for blocks, value in zip(depths, map(number, top1), strict=True)
            if value is not None
            and isinstance(blocks, list)
            and all(isinstance(each, int) for each in blocks)
        ]
        if pairs:
            own = record.get("main")
            latest[str(record.get("statistics"))] = Subnets(
                str(record.get("statistics")),
                [blocks for blocks, _ in pairs],
                [value for _, value in pairs],
                number(own.get("top1")) if isinstance(own, dict) else main,
                str(record.get("source", "metrics.jsonl")),
            )
    return list(latest.values())


@dataclass(frozen=True, slots=True)
class Interval:
    """The steps between two reports of training: how many, seconds, images, and the record of them."""

    steps: float
    seconds: float
    images: float
    record: Record


def intervals(run: RunData) -> list[Interval]:
    """Those of which time and images are known."""
    found, before = [], 0.0
    for record in run.of("train"):
        step, milliseconds, rate = (
            number(record.get(name)) for name in ("global_step", "step_ms", "images_per_second")
        )
        if step is None:
            continue
        steps, before = max(0.0, step - before), step
        if milliseconds is not None and rate is not None:
            seconds = steps * milliseconds / 1e3
            found.append(Interval(steps, seconds, seconds * rate, record))
    return found


@dataclass(frozen=True, slots=True)
class Speed:
    """Of training, evaluations left out.

    Attributes:
        seconds: of all steps.
        images: of all steps.
        rate: images per second, over all processes.
        per_process: likewise, of one process.
        step_p50: milliseconds, the middle report's median step.
        step_p95: milliseconds, the largest 95th percentile of a report.
        wait: share of the time spent waiting for images.
        worst_wait: of the worst report.
        gflops: per image, that ran.
        mfu: share of what the GPU could.
    """

    seconds: float | None = None
    images: float | None = None
    rate: float | None = None
    per_process: float | None = None
    step_p50: float | None = None
    step_p95: float | None = None
    wait: float | None = None
    worst_wait: float | None = None
    gflops: float | None = None
    mfu: float | None = None


def speed(run: RunData) -> Speed:
    """Of a run."""
    parts = intervals(run)
    seconds = math.fsum(each.seconds for each in parts)
    if not seconds:
        return Speed()
    images = math.fsum(each.images for each in parts)
    flops = _mean(parts, "flops_per_image")
    return Speed(
        seconds=seconds,
        images=images,
        rate=images / seconds,
        per_process=_mean(parts, "images_per_second_per_process"),
        step_p50=median(values) if (values := _values(parts, "step_ms_p50")) else None,
        step_p95=max(_values(parts, "step_ms_p95"), default=None),
        wait=_mean(parts, "data_wait"),
        worst_wait=max(_values(parts, "data_wait"), default=None),
        gflops=None if flops is None else flops / 1e9,
        mfu=_mean(parts, "mfu"),
    )


@dataclass(frozen=True, slots=True)
class Energy:
    """Of the GPUs' boards while they trained.

    Attributes:
        joules_per_image: of all GPUs together.
        kwh: of the part of the run that was measured.
        watts: mean, of all GPUs together.
        share: of the training time in which power is known.
        celsius: the hottest.
        memory_gib: the fullest.
        utilisation: mean, percent.
    """

    joules_per_image: float
    kwh: float
    watts: float
    share: float
    celsius: float | None
    memory_gib: float | None
    utilisation: float | None


def energy(run: RunData) -> Energy | None:
    """Of a run; None where no power was recorded."""
    parts = intervals(run)
    known = [each for each in parts if number(each.record.get("gpu_watts")) is not None]
    seconds = math.fsum(each.seconds for each in known)
    if not seconds:
        return None
    joules = math.fsum(each.seconds * each.record["gpu_watts"] for each in known)
    return Energy(
        joules_per_image=joules / math.fsum(each.images for each in known),
        kwh=joules / 3.6e6,
        watts=joules / seconds,
        share=seconds / math.fsum(each.seconds for each in parts),
        celsius=max(_values(known, "gpu_celsius"), default=None),
        memory_gib=max(_values(known, "gpu_memory_gib"), default=None),
        utilisation=_mean(known, "gpu_utilisation"),
    )


def _values(parts: Iterable[Interval], name: str) -> list[float]:
    return [value for each in parts if (value := number(each.record.get(name))) is not None]


def _mean(parts: Sequence[Interval], name: str) -> float | None:
    """By time; None where no report has it."""
    known = [(value, each.seconds) for each in parts if (value := number(each.record.get(name))) is not None]
    weight = math.fsum(seconds for _, seconds in known)
    return math.fsum(value * seconds for value, seconds in known) / weight if weight else None


def not_finite(run: RunData) -> int:
    """Reports of training whose loss was NaN or infinite."""
    return sum("loss" in each and number(each["loss"]) is None for each in run.of("train"))
