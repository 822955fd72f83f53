"""`python -m bench decoders DIR`: ways from encoded images to random crops, per second and CPU-second.

This project's pipeline decodes the crop's window alone (`window`); the others decode the whole image, then
crop and resize it (`whole`), or let DALI's decoder draw the window (`drawn`). On a GPU each with several
shares of the batch for its JPEG engines (`data.hardware_decoder_load`). Each measurement is a process of its
own.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fasttrain.config import Data
from fasttrain.errors import ConfigError
from fasttrain.pipelines.manifest import open_images

from . import measure
from .arguments import Parser, check_least, chosen
from .data import apart, graph_batches, open_whole_batches, time_batches
from .rows import PLACE, Rows, default_output, environment

COLUMNS = ("bench", "way", "hardware_load", "crop", "batch", "metric", "value", "unit", "round", *PLACE)
WAYS = ("window", "whole", "drawn")


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement.

    Attributes:
        way: one of `WAYS`.
        data: crop, area and hardware load.
        batch: images per batch.
        batches: how many are timed.
        threads: of DALI.
        device: where the crops shall be.
    """

    way: str
    data: Data
    batch: int
    batches: int
    threads: int
    device: str


def main(argv: Sequence[str]) -> None:
    """Run the benchmark.

    Raises:
        ConfigError: an option's value that is not allowed.
        DataError: a folder without images.
    """
    options = _parser().parse_args(list(argv))
    device = measure.choose_device(options.device)
    check_least(options, batch=1, batches=1, rounds=1, crop=1)
    open_whole_batches(options)
    loads = _loads(options.loads) if device.type == "cuda" else [0.0]
    common = {"bench": "decoders", "crop": options.crop, "batch": options.batch} | environment(device)
    rows = Rows(options.output or default_output("decoders", device), COLUMNS, common)
    data = Data(train=str(options.images), crop=options.crop)
    for index in range(options.rounds):
        for load in loads:
            for way in chosen("--ways", options.ways, WAYS):
                own = replace(data, hardware_decoder_load=load)
                threads = len(os.sched_getaffinity(0))
                job = Job(way, own, options.batch, options.batches, threads, device.type)
                rate, per_cpu = apart(measure_job, job)
                shared = {"way": way, "hardware_load": load if device.type == "cuda" else "", "round": index}
                rows.add(metric="rate", value=rate, unit="images/s", **shared)
                rows.add(metric="per_cpu_second", value=per_cpu, unit="images/CPU s", **shared)
                rows.write()
                named = f", {load:g} of them by the JPEG engines" if device.type == "cuda" else ""
                print(f"{way}{named}: {rate:.1f} images/s, {per_cpu:.1f} images/CPU s", flush=True)


def _loads(text: str) -> list[float]:
    try:
        loads = [float(each) for each in text.split(",")]
    except ValueError:
        loads = []
    if not loads or not all(0 <= load <= 1 for load in loads):
        raise ConfigError(f"--loads is {text!r}; allowed: numbers from 0 to 1 with commas between them")
    return loads


def measure_job(job: Job) -> tuple[float, float]:
    """Images per second and per CPU-second."""
    from nvidia.dali import fn, types

    from fasttrain.pipelines.decoding import decode, decoder_options
    from fasttrain.pipelines.draws import RATIO, TRIES, augmentation
    from fasttrain.pipelines.graphs import imagenet_crop

    device = torch.device(job.device)
    data, mixed = job.data, device.type == "cuda"
    area: dict[str, Any] = {
        "random_area": [data.min_area, 1.0],
        "random_aspect_ratio": list(RATIO),
        "num_attempts": TRIES,
    }
    size: dict[str, Any] = {"size": [data.crop, data.crop], "interp_type": types.DALIInterpType.INTERP_LINEAR}

    def graph(inputs: Mapping[str, Any]) -> list[Any]:
        encoded = inputs["encoded"]
        if job.way == "window":
            return [imagenet_crop(inputs, data, mixed)]
        if job.way == "whole":
            return [fn.random_resized_crop(decode(encoded, data, mixed), antialias=True, **size, **area)]
        images = fn.decoders.image_random_crop(encoded, **decoder_options(data, mixed), **area)
        return [fn.resize(images, antialias=True, **size)]

    def numbers(run: int) -> dict[str, Any]:
        return {"crop": augmentation(data, 0, 0, run, job.batch)["crop"]} if job.way == "window" else {}

    folder = open_images(data.train)
    source = graph_batches(folder, graph, job.batch, job.threads, device, numbers)
    seconds, cpu = time_batches(source, job.batches, device)
    return job.batches * job.batch / seconds, job.batches * job.batch / cpu


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench decoders", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("images", type=Path, help="folder with one folder of images per class, manifest, or folder of tars")
    add("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is a GPU")
    add("--ways", default="", help=f"some of {','.join(WAYS)} (default: all)")
    add("--loads", default="0,0.25,0.5,0.65,0.75,0.9,1", help="hardware loads, on a GPU (%(default)s)")
    add("--crop", type=int, default=200, help="side of the crops, pixels (%(default)s)")
    add("--batch", type=int, default=64, help="images per batch (%(default)s)")
    add("--batches", type=int, default=32, help="batches of a measurement (%(default)s)")
    add("--rounds", type=int, default=3, help="measurements of each (%(default)s)")
    add("-o", "--output", type=Path, help="CSV file (default: bench/results/<device>/decoders.csv)")
    return parser
