"""`python -m bench wait DIR`: what a training step waits for its images.

The recipe's step on batches of the training pipeline, and on one batch that stays: the difference is what the
pipeline costs, in waiting and in cores that it takes from the step; rounds of both alternate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import fmean

import torch

from fasttrain import build
from fasttrain.config import Config
from fasttrain.distributed import Process
from fasttrain.hardware import choose_precision, configure_backends
from fasttrain.pipelines.batch import Batch
from fasttrain.pipelines.folder import ImageFolder
from fasttrain.recipes import recipe

from . import measure
from .arguments import Parser, check_least
from .data import open_whole_batches
from .rows import PLACE, Rows, default_output, environment

COLUMNS = ("bench", "recipe", "model", "crop", "batch", "metric", "value", "unit", "round", *PLACE)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark.

    Raises:
        ConfigError: an option's value that is not allowed.
        DataError: a folder without images.
    """
    options = _parser().parse_args(list(argv))
    device = measure.choose_device(options.device)
    check_least(options, batch=2, steps=1, rounds=1)
    config, folder = _config(options, device), open_whole_batches(options)
    common = {"bench": "wait", "recipe": options.recipe, "model": config.model.name, "crop": config.data.crop}
    rows = Rows(
        options.output or default_output("wait", device),
        COLUMNS,
        common | {"batch": options.batch} | environment(device),
    )
    shares = []
    for index, (resident, loaded, waiting) in enumerate(measure_rounds(config, folder, device, options)):
        shares.append(100 * (1 - resident / loaded))
        for metric, value, unit in (
            ("resident", resident, "s"),
            ("loaded", loaded, "s"),
            ("waiting", 100 * waiting / loaded, "%"),
            ("cost", shares[-1], "%"),
        ):
            rows.add(metric=metric, value=value, unit=unit, round=index)
        rows.write()
        print(
            f"round {index + 1}: {1e3 * resident:.1f} ms per step on a batch that stays, {1e3 * loaded:.1f} "
            f"with the pipeline, {100 * waiting / loaded:.2f} % of them waiting for the next batch",
            flush=True,
        )
    print(f"the pipeline costs {fmean(shares):.2f} % of a step: {rows.path}")


def measure_rounds(
    config: Config, folder: ImageFolder, device: torch.device, options: argparse.Namespace
) -> Iterator[tuple[float, float, float]]:
    """Of each round, seconds per step: on a batch that stays, with the pipeline, and waiting for it."""
    from fasttrain.loading import build_train_loader

    process, precision = Process(0, 1, device), choose_precision(config.run.precision, device)
    configure_backends(config.run, device)
    network = build.build_network(config, 1000, device).train()
    loader = build_train_loader(config, folder, process, precision.image_dtype)
    step = build.build_step(config, network, process, precision, loader.steps_per_epoch)
    source = (batch for epoch in count() for batch in loader.epoch(epoch))
    number = count()

    def train(batch: Batch) -> None:
        index = next(number)
        step(batch.images, batch.small, batch.targets, epoch=0, step=index, global_step=0)

    def timed(take: Callable[[], Batch]) -> tuple[float, float]:
        """Seconds per step, and waiting in it."""
        measure.synchronize(device)
        begin, waiting = time.perf_counter(), 0.0
        for _ in range(options.steps):
            asked = time.perf_counter()
            batch = take()
            waiting += time.perf_counter() - asked
            train(batch)
        measure.synchronize(device)
        return (time.perf_counter() - begin) / options.steps, waiting / options.steps

    try:
        for _ in range(options.warmup):
            kept = next(source)
            train(kept)
        for _ in range(options.rounds):
            kept = next(source)
            resident, _ = timed(lambda kept=kept: kept)  # type: ignore[misc]
            yield resident, *timed(lambda: next(source))
    finally:
        loader.close()


def _config(options: argparse.Namespace, device: torch.device) -> Config:
    """The recipe with one side for the small batches, so that all steps cost alike, and a tiny rate."""
    config = recipe(options.recipe)
    sizes = config.method.sizes
    return replace(
        config,
        data=replace(config.data, train=str(options.images), num_classes=1000),
        method=replace(config.method, sizes=sizes[len(sizes) // 2 :][:1]),
        optim=replace(config.optim, lr=1e-6),
        run=replace(config.run, batch=options.batch, device=device.type),  # type: ignore[arg-type]
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench wait", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("images", type=Path, help="folder with one folder of images per class, manifest, or folder of tars")
    add("--recipe", default="rn50-stpp-a1", help="(%(default)s)")
    add("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is a GPU")
    add("--batch", type=int, default=8, help="images per step (%(default)s)")
    add("--steps", type=int, default=4, help="of a round, of each kind (%(default)s)")
    add("--rounds", type=int, default=3, help="(%(default)s)")
    add("--warmup", type=int, default=2, help="steps before, not counted (%(default)s)")
    add("-o", "--output", type=Path, help="CSV file (default: bench/results/<device>/wait.csv)")
    return parser
