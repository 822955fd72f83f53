"""`python -m bench data DIR`: the training pipeline against torch's DataLoader.

Images per CPU-second (all threads and processes) and per second, of this project's pipeline (with the exact
colour jitter, and with the folded one), torchvision v2 on tensors and PIL, for each stage: decode; + random
resized crop, flip and normalization; + colour jitter and lighting; + downscaled batch. Each measurement is a
process of its own.
"""

from __future__ import annotations

import argparse
import collections
import gc
import itertools
import multiprocessing
import os
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from fasttrain.config import Data
from fasttrain.errors import ConfigError, DataError
from fasttrain.hardware import Precision
from fasttrain.pipelines.folder import ImageFolder
from fasttrain.pipelines.manifest import open_images
from fasttrain.recipes.imagenet import FAST_SIZES

from . import measure
from .arguments import Parser, check_least, chosen
from .rows import PLACE, Rows, default_output, environment
from .summary import table
from .torch_loaders import batches

COLUMNS = ("bench", "loader", "stage", "crop", "side", "batch", "metric", "value", "unit", "round", *PLACE)
OURS = ("dali", "dali-folded")
"""This project's pipeline, with the exact colour jitter and with the folded one (`data.colour`)."""
LOADERS = (*OURS, "torchvision", "pil")
"""This project's pipeline, and torch's DataLoader on tensors and on PIL images."""
COLOURED = ("colour", "small")
STAGES = ("decode", "crop", *COLOURED)
"""What is done, each with all before it."""

J = TypeVar("J")


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement.

    Attributes:
        loader: one of `LOADERS`.
        stage: one of `STAGES`.
        images: folder.
        crop: side of the full-size batch, pixels.
        side: of the downscaled batches, pixels.
        batch: images per batch.
        batches: how many are timed.
        cores: threads or worker processes.
        device: where the batches shall be.
    """

    loader: str
    stage: str
    images: str
    crop: int
    side: int
    batch: int
    batches: int
    cores: int
    device: str


def main(argv: Sequence[str]) -> None:
    """Run the benchmark.

    Raises:
        ConfigError: an option's value that is not allowed.
        DataError: a folder without images.
    """
    options = _parser().parse_args(list(argv))
    device = measure.choose_device(options.device)
    check_least(options, batch=1, batches=1, rounds=1, crop=min(FAST_SIZES))
    open_whole_batches(options)
    jobs = _jobs(options, device)
    common = {"bench": "data", "crop": options.crop, "batch": options.batch} | environment(device)
    rows = Rows(options.output or default_output("data", device), COLUMNS, common)
    for index in range(options.rounds):
        for job in jobs:
            rate, per_cpu = apart(measure_job, job)
            for metric, value, unit in (
                ("rate", rate, "images/s"),
                ("per_cpu_second", per_cpu, "images/CPU s"),
            ):
                side = job.side if job.stage == "small" else ""
                rows.add(
                    loader=job.loader,
                    stage=job.stage,
                    side=side,
                    metric=metric,
                    value=value,
                    unit=unit,
                    round=index,
                )
            rows.write()
    print(table(_summary(rows)))


def open_whole_batches(options: argparse.Namespace) -> ImageFolder:
    """The images of a benchmark's options, at least one batch of them.

    Raises:
        ConfigError: a batch larger than that.
        DataError: no images.
    """
    folder = open_images(str(options.images))
    if len(folder.files) < options.batch:
        raise ConfigError(f"--batch is {options.batch}; allowed: up to the {len(folder.files)} images")
    return folder


def _jobs(options: argparse.Namespace, device: torch.device) -> list[Job]:
    sizes = [size for size in FAST_SIZES if size <= options.crop]
    cores = len(os.sched_getaffinity(0))
    shared = (
        str(options.images),
        options.crop,
        sizes[len(sizes) // 2],
        options.batch,
        options.batches,
        cores,
        device.type,
    )
    stages = chosen("--stages", options.stages, STAGES)
    return [
        Job(loader, stage, *shared)
        for stage in stages
        for loader in chosen("--loaders", options.loaders, LOADERS)
        if loader != "dali-folded" or stage in COLOURED  # before, nothing differs
    ]


def apart(measure_one: Callable[[J], tuple[float, float]], job: J) -> tuple[float, float]:
    """Images per second and per CPU-second of a job in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure_one, job).result()
        except DataError as error:  # a DataLoader's worker puts its traceback before it
            raise DataError(
                str(error).strip().splitlines()[-1].removeprefix("fasttrain.errors.DataError: ")
            ) from None


def measure_job(job: Job) -> tuple[float, float]:
    """Images per second and per CPU-second (this process and its children), after two batches of warm-up."""
    run = _dali if job.loader in OURS else _torch
    images, seconds, cpu = run(job)
    return images / seconds, images / cpu


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _data(job: Job) -> Data:
    """The recipe's augmentation, up to the job's stage."""
    data = Data(train=job.images, crop=job.crop, val_crop=job.crop, val_resize=job.crop)
    if job.stage not in COLOURED:
        return replace(data, jitter=0.0, lighting=0.0)
    return replace(data, colour="folded") if job.loader == "dali-folded" else data


def _torch(job: Job) -> tuple[int, float, float]:
    """Images, seconds and CPU-seconds of a DataLoader; its workers' start counts, as it does in training."""
    torch.set_num_threads(1)
    folder = open_images(job.images)
    data = None if job.stage == "decode" else _data(job)
    side = job.side if job.stage == "small" else 0
    begin, cpu = time.perf_counter(), _cpu_seconds()
    source = batches(
        job.loader, folder, data, batch=job.batch, count=job.batches, workers=job.cores, side=side
    )
    collections.deque(source, maxlen=0)
    gc.collect()  # the workers have ended, so that their CPU time counts
    return job.batches * job.batch, time.perf_counter() - begin, _cpu_seconds() - cpu


def _dali(job: Job) -> tuple[int, float, float]:
    """Images, seconds and CPU-seconds of this project's pipeline."""
    device = torch.device(job.device)
    source = _decoded(job, device) if job.stage == "decode" else _augmented(job, device)
    return job.batches * job.batch, *time_batches(source, job.batches, device)


def time_batches(source: Iterator[object], batches: int, device: torch.device) -> tuple[float, float]:
    """Seconds and CPU-seconds of a DALI pipeline's batches, after two; its queue is full before and after."""
    collections.deque(itertools.islice(source, 2), maxlen=0)
    _wait_for_quiet()
    begin, cpu = time.perf_counter(), _cpu_seconds()
    collections.deque(itertools.islice(source, batches), maxlen=0)
    measure.synchronize(device)
    seconds = time.perf_counter() - begin
    _wait_for_quiet()
    return seconds, _cpu_seconds() - cpu


def _wait_for_quiet(pause: float = 0.25) -> None:
    """Until this process uses next to no CPU: its prefetch queue is full."""
    before = -1.0
    while (now := time.process_time()) - before > 0.02 * pause:
        before = now
        time.sleep(pause)


def _augmented(job: Job, device: torch.device) -> Iterator[object]:
    """Batches of the training loader, epoch after epoch."""
    from fasttrain.pipelines.loader import train_loader

    precision = Precision(measure.choose_precision("auto", device), device.type)
    sizes = (job.side,) if job.stage == "small" else ()
    loader = train_loader(
        _data(job),
        open_images(job.images),
        batch=job.batch,
        seed=0,
        device=device,
        dtype=precision.image_dtype,
        sizes=sizes,
        sizes_per_step=1 if sizes else 0,
    )
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def _decoded(job: Job, device: torch.device) -> Iterator[object]:
    """Batches of one pixel of each decoded image."""
    from nvidia.dali import fn

    from fasttrain.pipelines.decoding import decode

    def graph(inputs: Mapping[str, Any]) -> list[Any]:
        return [fn.crop(decode(inputs["encoded"], _data(job), device.type == "cuda"), crop=(1, 1))]

    return graph_batches(open_images(job.images), graph, job.batch, job.cores, device)


def graph_batches(
    folder: ImageFolder,
    graph: Callable[[Mapping[str, Any]], list[Any]],
    batch: int,
    threads: int,
    device: torch.device,
    numbers: Callable[[int], dict[str, Any]] = lambda run: {},
) -> Iterator[object]:
    """Batches of the images in order, over and over, by a DALI graph of the `encoded` ones and of numbers."""
    from fasttrain.pipelines.stream import Feed, Stream

    def feed(run: int) -> Feed:
        first = run * batch
        return Feed(np.arange(first, first + batch) % len(folder.files), numbers(run))

    stream = Stream(folder, feed, graph, batch=batch, device=device, threads=threads, prefetch=2)
    for run in itertools.count():
        yield stream.take(run)


def _summary(rows: Rows) -> list[dict[str, str]]:
    """One line per stage and loader: medians, and this project's pipeline over the other."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows.kept:
        values[row["stage"], row["loader"], row["metric"]].append(float(row["value"]))
    medians = {key: float(np.median(own)) for key, own in values.items()}
    return [
        {
            "loader": f"{stage}: {loader}",
            "images/s": f"{medians[stage, loader, 'rate']:.1f}",
            "images/CPU s": f"{medians[stage, loader, 'per_cpu_second']:.1f}",
            **{f"{ours} over it": _gain(medians, stage, loader, ours) for ours in OURS},
        }
        for stage, loader in dict.fromkeys((stage, loader) for stage, loader, _ in medians)
    ]


def _gain(medians: dict[tuple[str, str, str], float], stage: str, loader: str, ours: str) -> str:
    own = medians.get((stage, ours, "per_cpu_second"))
    return "-" if own is None else f"{own / medians[stage, loader, 'per_cpu_second']:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench data", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("images", type=Path, help="folder with one folder of images per class, manifest, or folder of tars")
    add("--device", choices=("cpu", "cuda"), default="", help="of this project's pipeline; default: a GPU's")
    add("--crop", type=int, default=200, help="side of the full-size batch, pixels (%(default)s)")
    add("--batch", type=int, default=64, help="images per batch (%(default)s)")
    add("--batches", type=int, default=32, help="batches of a measurement (%(default)s)")
    add("--stages", default="", help=f"some of {','.join(STAGES)} (default: all)")
    add("--loaders", default="", help=f"some of {','.join(LOADERS)} (default: all)")
    add("--rounds", type=int, default=3, help="measurements of each loader and stage (%(default)s)")
    add("-o", "--output", type=Path, help="CSV file (default: bench/results/<device>/data.csv)")
    return parser
