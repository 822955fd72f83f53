"""`python -m bench save`: by how much a checkpoint that is written in the background delays a step.

The recipe's step on one batch that stays: steps without and with a save in flight alternate. A step with one
begins with the snapshot, or is computed while an earlier snapshot is written.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from fasttrain import build
from fasttrain.checkpoint.archive import Archive
from fasttrain.checkpoint.state import State
from fasttrain.checkpoint.writer import Writer
from fasttrain.config import Config
from fasttrain.distributed import Process
from fasttrain.hardware import choose_precision, configure_backends
from fasttrain.pipelines.loader import TrainLoader
from fasttrain.recipes import recipe
from fasttrain.telemetry.interval import Interval

from . import measure
from .arguments import Parser, check_least
from .rows import PLACE, Rows, default_output, environment

COLUMNS = ("bench", "recipe", "model", "crop", "batch", "metric", "value", "unit", "round", *PLACE)


@dataclass
class Round:
    """Seconds of steps without and with a save in flight, of the snapshots, and of the writing."""

    quiet: list[float] = field(default_factory=list)
    saving: list[float] = field(default_factory=list)
    snapshot: list[float] = field(default_factory=list)
    writing: list[float] = field(default_factory=list)


class _Stays:
    """Stands for a loader: its batch stays, and it has nothing to go on with."""

    fingerprint: dict[str, Any] = {"dali": ""}  # noqa: RUF012 - read alone

    def state_dict(self) -> dict[str, Any]:
        return {}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark.

    Raises:
        ConfigError: an option's value that is not allowed.
        CheckpointError: the checkpoints cannot be written.
    """
    options = _parser().parse_args(list(argv))
    device = measure.choose_device(options.device)
    check_least(options, batch=2, steps=1, rounds=1)
    config = _config(options, device)
    common = {"bench": "save", "recipe": options.recipe, "model": config.model.name, "crop": config.data.crop}
    rows = Rows(
        options.output or default_output("save", device),
        COLUMNS,
        common | {"batch": options.batch} | environment(device),
    )
    quiet, saving = [], []
    for index, done in enumerate(measure_rounds(config, device, options)):
        quiet += done.quiet
        saving += done.saving
        for metric in ("quiet", "saving", "snapshot", "writing"):
            for value in getattr(done, metric):
                rows.add(metric=metric, value=value, unit="s", round=index)
        rows.write()
        print(
            f"round {index + 1}: {1e3 * np.median(done.quiet):.1f} ms per step, "
            f"{1e3 * np.median(done.saving):.1f} with a save in flight (snapshot "
            f"{1e3 * np.median(done.snapshot):.1f} ms, written in {np.median(done.writing):.2f} s)",
            flush=True,
        )
    delay = 100 * (float(np.median(saving)) / float(np.median(quiet)) - 1)
    rows.add(metric="delay", value=delay, unit="%", round="", n=len(saving))
    rows.write()
    print(f"a save in flight delays the median step by {delay:.2f} %: {rows.path}")


def measure_rounds(config: Config, device: torch.device, options: argparse.Namespace) -> Iterator[Round]:
    """Each round: `steps` steps alone, a save, as many steps with saves in flight."""
    process, precision = Process(0, 1, device), choose_precision(config.run.precision, device)
    configure_backends(config.run, device)
    network = build.build_network(config, 1000, device).train()
    step = build.build_step(config, network, process, precision, 1_000_000)
    loader = cast(TrainLoader, _Stays())
    state = State(config, process, ["class"], network, step, loader, Interval(device))
    images = torch.randn(options.batch, 3, config.data.crop, config.data.crop, device=device)
    images = images.to(memory_format=torch.channels_last)
    small = [torch.nn.functional.interpolate(images, (side, side)) for side in config.method.sizes]
    targets = torch.randint(0, 1000, (options.batch,), device=device)
    number, writer = count(), Writer()

    def train() -> None:
        step(images, small, targets, epoch=0, step=next(number), global_step=0)
        measure.synchronize(device)

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        archive = Archive(Path(folder) / "checkpoints")

        def write(global_step: int, captured: dict[str, Any], done: Round) -> None:
            begin = time.perf_counter()
            archive.save(global_step, captured, {}, best=False)
            done.writing.append(time.perf_counter() - begin)

        def timed_step(done: Round, save: bool) -> None:
            begin = time.perf_counter()
            if save and writer.idle:
                captured = state.capture()
                done.snapshot.append(time.perf_counter() - begin)
                writer.submit(partial(write, next(number), captured, done))
            train()
            (done.saving if save else done.quiet).append(time.perf_counter() - begin)

        for _ in range(options.warmup):
            timed_step(Round(), True)
        for _ in range(options.rounds):
            writer.wait()
            done = Round()
            for save in (False, True):
                for _ in range(options.steps):
                    timed_step(done, save)
            writer.wait()
            failure = writer.failure()
            if failure is not None:
                raise failure
            yield done


def _config(options: argparse.Namespace, device: torch.device) -> Config:
    """The recipe with one side for the small batches, so that all steps cost alike, and a tiny rate."""
    config = recipe(options.recipe)
    sizes = config.method.sizes
    return replace(
        config,
        data=replace(config.data, num_classes=1000),
        method=replace(config.method, sizes=sizes[len(sizes) // 2 :][:1]),
        optim=replace(config.optim, lr=1e-6),
        run=replace(config.run, batch=options.batch, device=device.type),  # type: ignore[arg-type]
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench save", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("--recipe", default="rn50-ct-200", help="(%(default)s)")
    add("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is a GPU")
    add("--batch", type=int, default=8, help="images per step (%(default)s)")
    add("--steps", type=int, default=4, help="of a round, of each kind (%(default)s)")
    add("--rounds", type=int, default=6, help="(%(default)s)")
    add("--warmup", type=int, default=2, help="steps before, not counted (%(default)s)")
    add("--folder", type=Path, help="of the checkpoints (default: the system's for temporary files)")
    add("-o", "--output", type=Path, help="CSV file (default: bench/results/<device>/save.csv)")
    return parser
