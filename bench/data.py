"""`python -m bench data`: images per second out of the training pipeline, downscaled batches or not."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fasttrain.config import Data
from fasttrain.errors import ConfigError
from fasttrain.hardware import Precision
from fasttrain.recipes.imagenet import FAST_SIZES

from . import measure
from .arguments import Parser, check_least
from .rows import PLACE, Rows, default_output, environment

COLUMNS = ("bench", "mode", "crop", "sizes", "batch", "metric", "value", "unit", *PLACE)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark.

    Raises:
        ConfigError: an option's value that is not allowed.
        DataError: a folder without images.
    """
    options = _parser().parse_args(list(argv))
    device = measure.choose_device(options.device)
    check_least(options, batch=1, steps=1, rounds=1)
    common = {"bench": "data", "crop": options.crop, "batch": options.batch} | environment(device)
    rows = Rows(options.output or default_output("data", device), COLUMNS, common)
    small = tuple(size for size in FAST_SIZES if size <= options.crop)
    for mode, sizes in (("full", ()), ("full and downscaled", small)):
        rates = measure_loader(options, device, sizes)
        for rate in rates:
            rows.add(mode=mode, sizes=" ".join(map(str, sizes)), metric="rate", value=rate, unit="images/s")
        rows.write()
        p20, p50, p80 = np.quantile(rates, (0.2, 0.5, 0.8))
        print(f"{mode}: {p50:.1f} images/s (p20 {p20:.1f}, p80 {p80:.1f}; {options.steps} batches each)")


def measure_loader(options: argparse.Namespace, device: torch.device, sizes: tuple[int, ...]) -> list[float]:
    """Images per second of each round of batches, the first of which is not counted."""
    from fasttrain.pipelines.loader import train_loader
    from fasttrain.pipelines.manifest import open_images

    precision = Precision(measure.choose_precision("auto", device), device.type)
    folder = open_images(options.images)
    if len(folder.files) < options.batch:
        raise ConfigError(f"--batch is {options.batch}; allowed: up to the {len(folder.files)} images")
    loader = train_loader(
        Data(train=str(options.images), crop=options.crop, val_crop=options.crop, val_resize=options.crop),
        folder,
        batch=options.batch,
        seed=0,
        rank=0,
        world=1,
        device=device,
        dtype=precision.image_dtype,
        sizes=sizes,
        sizes_per_step=1 if sizes else 0,
    )
    rates: list[float] = []
    steps, begin, epoch = -1, 0.0, 0
    try:
        while len(rates) < options.rounds:
            for _ in loader.epoch(epoch):
                steps += 1
                if steps % options.steps == 0:
                    measure.synchronize(device)
                    now = time.perf_counter()
                    if steps:
                        rates.append(options.steps * options.batch / (now - begin))
                    begin = now
                if len(rates) == options.rounds:
                    break
            epoch += 1
    finally:
        loader.close()
    return rates


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench data", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("images", type=Path, help="folder with one folder of images per class, manifest, or folder of tars")
    add("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is a GPU")
    add("--crop", type=int, default=200, help="side of the full-size batch, pixels (%(default)s)")
    add("--batch", type=int, default=64, help="images per batch (%(default)s)")
    add("--steps", type=int, default=8, help="batches per round (%(default)s)")
    add("--rounds", type=int, default=5, help="rounds (%(default)s)")
    add("-o", "--output", type=Path, help="CSV file (default: bench/results/<device>/data.csv)")
    return parser
