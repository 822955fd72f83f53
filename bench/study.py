"""`python -m bench study DIR`: accuracy of CT, ST and the modes of ST++, over seeds, on small images.

DIR holds train/ and test/, one folder of images per class in each (CIFAR-10 as JPEGs). Images are decoded
once and augmented on the device; no DALI is needed. Every finished run adds its rows to the file, an
unfinished one goes on where it was: run the same command again until it says that nothing is left.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasttrain import build, checkpoint
from fasttrain.config import Config, Evaluation, Method, Model, Run, to_dict
from fasttrain.distributed import Process
from fasttrain.errors import ConfigError, NonFiniteError, RunError
from fasttrain.evaluation import evaluate, evaluate_subnets
from fasttrain.hardware import choose_precision, configure_backends
from fasttrain.models import StagedNetwork
from fasttrain.pipelines.manifest import open_images
from fasttrain.pipelines.resident import ResidentImages, ResidentLoader, decode, ordered_batches
from fasttrain.recipes.cifar import (
    CIFAR_SIZES,
    cifar10_resnet56_ct,
    cifar10_resnet56_st,
    cifar10_resnet56_stpp,
)
from fasttrain.step import TrainStep

from . import measure
from .arguments import Parser, check_least, check_minutes, chosen
from .plots import METRICS
from .rows import PLACE, Rows, default_output, environment

SETTINGS = ("data", "model", "crop", "images", "epochs", "batch", "subnets", "precision")
COLUMNS = ("bench", "method", "seed", "metric", "value", "unit", *SETTINGS, *PLACE)

_STPP = cifar10_resnet56_stpp().method
METHODS: dict[str, Method] = {
    "ct": cifar10_resnet56_ct().method,
    "st": cifar10_resnet56_st().method,
    "stpp-r1": _STPP,
    "stpp-r2": replace(_STPP, sizes_per_step=2),
    "stpp-rk": replace(_STPP, sizes_per_step=_STPP.subnets),
    "stpp-cascaded": replace(_STPP, subnet_inputs="cascaded"),
    "stpp-half": replace(_STPP, subnet_share=0.5),
    "stpp-coupled": replace(_STPP, draws="coupled"),
}
"""Name to method; all of ST++ draw from the same sizes, so that only what the name says differs."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the study.

    Attributes:
        method: its name.
        config: all of it.
        state: file in which an unfinished run waits.
        deadline: on `time.time`'s clock, after which no epoch is begun.
        threads: of torch.
        parent: the process without which nobody would record the result.
    """

    method: str
    config: Config
    state: Path
    deadline: float
    threads: int
    parent: int

    @property
    def seed(self) -> int:
        """Of initialization, order, augmentation and draws."""
        return self.config.run.seed


Result = dict[str, float]
"""Metric to value, in percent."""


def main(argv: Sequence[str]) -> None:
    """Run what is left of the study, for some minutes.

    Raises:
        ConfigError: an option's value that is not allowed.
        DataError: folders without images.
        NonFiniteError: a run that diverged.
        RunError: one of several processes died.
    """
    options = _parser().parse_args(list(argv))
    device = measure.choose_device(options.device)
    check_least(options, epochs=1, batch=2, seeds=1, crop=4, images=0, jobs=1)
    check_minutes(options)
    folder = open_images(options.images_folder / "train")
    test_folder = open_images(options.images_folder / "test", folder.classes)
    train, test = decode(folder, options.crop), decode(test_folder, options.crop)
    train = train.first(options.images or len(train))
    settings = _settings(options, device, len(train)) | {"data": folder.fingerprint[:12]}
    place = environment(device) | {"threads": max(1, torch.get_num_threads() // options.jobs)}
    rows = Rows(options.output or default_output("study", device), COLUMNS, settings | place, extend=True)
    jobs = _jobs(options, device, rows, settings, place["threads"], len(folder.classes))
    left = len(jobs)
    print(f"{left} runs to do, {len(train)} training and {len(test)} test images", flush=True)
    for job, result in _run(jobs, train, test, options.jobs):
        if result is not None:
            left -= 1
            _record(rows, job, result)
            job.state.unlink(missing_ok=True)  # not before the rows are written
            print(f"{job.method} seed {job.seed}: " + ", ".join(f"{k} {v:.2f}" for k, v in result.items()))
    print(f"{left} runs left: the same command goes on" if left else f"nothing left: {rows.path}")


def _settings(options: argparse.Namespace, device: torch.device, images: int) -> dict[str, Any]:
    return {
        "bench": "study",
        "model": options.model,
        "crop": options.crop,
        "images": images,
        "epochs": options.epochs,
        "batch": options.batch,
        "precision": choose_precision(options.precision, device).name,
    }


def _jobs(
    options: argparse.Namespace,
    device: torch.device,
    rows: Rows,
    settings: dict[str, Any],
    threads: int,
    classes: int,
) -> list[Job]:
    """The runs that the file does not hold yet, seed by seed, so that a study cut short has whole seeds."""
    names = chosen("--methods", options.methods, tuple(METHODS))
    found = Counter(
        (row["method"], str(row["seed"]))
        for row in rows.kept
        if all(str(row[column]) == str(value) for column, value in settings.items())
    )
    deadline = time.time() + 60 * options.minutes
    jobs = []
    for seed in range(options.seeds):
        for name in names:
            if found[name, str(seed)] < len(METRICS):
                config = configuration(options, name, seed, device, classes)
                stem = "-".join(str(settings[column]) for column in SETTINGS if column in settings)
                state = options.state / f"{stem}-{name}-{seed}.pt"
                jobs.append(Job(name, config, state, deadline, threads, os.getpid()))
    return jobs


def configuration(
    options: argparse.Namespace, name: str, seed: int, device: torch.device, classes: int
) -> Config:
    """A CIFAR recipe with the study's method, size, length and seed."""
    base, method, crop = cifar10_resnet56_ct(), METHODS[name], options.crop
    if method.sizes:
        method = replace(method, sizes=tuple(max(4, side * crop // 32) for side in CIFAR_SIZES))
    return replace(
        base,
        recipe=f"study-{name}",
        data=replace(
            base.data, num_classes=classes, crop=crop, padding=crop // 8, val_resize=crop, val_crop=crop
        ),
        model=Model(name=options.model),
        method=method,
        evaluation=Evaluation(subnets=-1, batch=500, calibration_images=2000),
        run=Run(
            epochs=options.epochs,
            batch=options.batch,
            seed=seed,
            device=device.type,  # type: ignore[arg-type]
            precision=options.precision,
        ),
    )


def _run(
    jobs: Sequence[Job], train: ResidentImages, test: ResidentImages, processes: int
) -> Iterator[tuple[Job, Result | None]]:
    """The jobs with their results, None for those that the time did not reach; the images are shared."""
    if processes == 1:
        _share(train, test)
        yield from map(_work, jobs)
        return
    context = torch.multiprocessing.get_context("spawn")
    workers = min(processes, len(jobs)) or 1
    with ProcessPoolExecutor(workers, context, _share, (train, test)) as pool:
        futures = [pool.submit(_work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise RunError(
                "a process of the study died; the same command goes on from its last epoch"
            ) from None
        except BaseException:  # Ctrl-C: nothing more is begun, and nobody waits
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_IMAGES: dict[str, ResidentImages] = {}


def _share(train: ResidentImages, test: ResidentImages) -> None:
    _IMAGES.update(train=train, test=test)


def _work(job: Job) -> tuple[Job, Result | None]:
    torch.set_num_threads(job.threads)
    device = torch.device(job.config.run.device)
    configure_backends(job.config.run, device)
    return job, train_one(job, _IMAGES["train"].to(device), _IMAGES["test"].to(device))


def train_one(job: Job, train: ResidentImages, test: ResidentImages) -> Result | None:
    """Train one network, from where it stands, and judge it; None if the time is over before.

    Raises:
        NonFiniteError: it diverged.
    """
    config, device = job.config, train.pixels.device
    precision = choose_precision(config.run.precision, device)
    network = build.build_network(config, config.data.num_classes, device).train()
    loader = _loader(config, train, config.run.seed)
    step = build.build_step(config, network, Process(0, 1, device), precision, loader.steps_per_epoch)
    first = _restore(job, network, step)
    for epoch in range(first, config.run.epochs):
        if time.time() > job.deadline:
            return None
        if os.getpid() != job.parent and os.getppid() != job.parent:
            os._exit(os.EX_TEMPFAIL)  # the study has ended; an exception would leave a pool's worker waiting
        for index, batch in enumerate(loader.epoch(epoch)):
            last = step(
                batch.images,
                batch.small,
                batch.targets,
                epoch=epoch,
                step=index,
                global_step=epoch * loader.steps_per_epoch + index,
            )
        if not last.loss.total.isfinite():
            raise NonFiniteError(f"{job.method}, seed {job.seed}: the loss is {last.loss.total.item()}")
        _save(job, network, step, epoch + 1)
    return judge(config, network, train, test)


def _loader(config: Config, images: ResidentImages, seed: int) -> ResidentLoader:
    downscaled = config.method.subnet_inputs == "downscaled"
    return ResidentLoader(
        images,
        config.data,
        batch=config.run.batch,
        seed=seed,
        sizes=config.method.sizes if downscaled else (),
        sizes_per_step=config.method.sizes_per_step if downscaled else 0,
    )


def _save(job: Job, network: StagedNetwork, step: TrainStep, epoch: int) -> None:
    state = {
        "config": to_dict(job.config),
        "classes": [],
        "position": {"epoch": epoch},
        "loader": {},
        "network": network.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "scaler": step.scaler.state_dict(),
    }
    checkpoint.save(job.state, state)


def _restore(job: Job, network: StagedNetwork, step: TrainStep) -> int:
    """Bring an unfinished run back; the epoch to go on with."""
    if not job.state.exists():
        return 0
    state = checkpoint.load(job.state)
    if state["config"] != to_dict(job.config):
        raise ConfigError(f"{job.state} is of a run with other settings; remove it")
    with checkpoint.restoring(job.state):
        network.load_state_dict(state["network"])
        step.optimizer.load_state_dict(state["optimizer"])
        step.scaler.load_state_dict(state["scaler"])
        epoch = int(state["position"]["epoch"])
        if not 0 <= epoch <= job.config.run.epochs:
            raise ValueError(f"it stands at epoch {epoch}")
        return epoch


def judge(config: Config, network: StagedNetwork, train: ResidentImages, test: ResidentImages) -> Result:
    """Top-1 in percent of the main network, and of all subnets with batch-norm statistics of their own."""
    precision = choose_precision(config.run.precision, test.pixels.device)

    def validation() -> Iterator[tuple[Tensor, Tensor]]:
        return ordered_batches(test, config.data, config.evaluation.batch)

    def calibration() -> Iterator[Tensor]:
        steps = -(-config.evaluation.calibration_images // config.run.batch)
        batches = _loader(replace(config, method=METHODS["ct"]), train, config.run.seed + 1).epoch(0)
        return (batch.images for _, batch in zip(range(steps), batches, strict=False))

    main = evaluate(network, [network.full], validation(), precision)[0]
    subnets = build.subnets_to_evaluate(config, network, config.evaluation.subnets)
    (report,) = evaluate_subnets(network, subnets, validation, calibration, precision, "reestimated")
    return {
        "main": main.top1,
        "subnets_mean": report.mean,
        "subnets_deviation": report.deviation,
        "subnets_worst": report.worst,
    }


def _record(rows: Rows, job: Job, result: Result) -> None:
    subnets = job.config.method.subnets if job.config.method.name == "stimulative" else 0
    for metric, value in result.items():
        rows.add(method=job.method, seed=job.seed, metric=metric, value=value, unit="%", subnets=subnets)
    rows.write()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench study", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("images_folder", metavar="DIR", type=Path, help="holds train/ and test/, a folder per class in each")
    add("--methods", default="ct,st,stpp-r1,stpp-rk,stpp-cascaded,stpp-coupled", help="(%(default)s)")
    add("--model", default="cifar_resnet20", help="(%(default)s)")
    add("--epochs", type=int, default=50, help="(%(default)s)")
    add("--seeds", type=int, default=3, help="runs of each method, with seeds 0, 1, ... (%(default)s)")
    add("--images", type=int, default=0, help="training images, evenly over the classes; 0: all")
    add("--crop", type=int, default=32, help="side to which images are brought, pixels (%(default)s)")
    add("--batch", type=int, default=128, help="images per step (%(default)s)")
    add("--minutes", type=float, default=8, help="after which no epoch is begun (%(default)s)")
    add("--jobs", type=int, default=1, help="runs at a time, each in a process of its own (%(default)s)")
    add("--precision", choices=("auto", "bf16", "fp16", "fp32"), default="auto", help="(%(default)s)")
    add("--state", type=Path, default=Path("runs/study"), help="folder of unfinished runs (%(default)s)")
    add("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is a GPU")
    add("-o", "--output", type=Path, help="CSV file (default: bench/results/<device>/study.csv)")
    return parser
