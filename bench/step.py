"""`python -m bench step`: one training step of each mode (see `bench.modes`), interleaved.

A step is forward, loss, backward and the optimizer's step on synthetic images. For each of some consecutive
draws every mode runs once, in an order that rotates, so that other load on the machine falls on all alike.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fasttrain import flops
from fasttrain.errors import ConfigError
from fasttrain.models import StagedNetwork, TreeForward, create_model
from fasttrain.subnets import Draw

from . import fit, measure
from .arguments import Parser, check_least
from .modes import MODES, Batch, Mode, Setup, Timm, build_mode, default_sizes, tree_key
from .rows import STEP_COLUMNS, Rows, default_output, environment
from .summary import summarize, table
from .trainee import Trainee, train_step, trainee_key
from .variants import VARIANTS, Variant

DEFAULT_MODES = tuple(name for name in MODES if name != "timm")
"""What is measured unless modes are named: all but timm's step, which not every network has."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One run of the benchmark, checked."""

    device: torch.device
    model: str
    batch: int
    draws: int
    minutes: float
    warmup: int
    modes: tuple[str, ...]
    precision: str
    memory: bool
    flops: bool
    num_classes: int
    setup: Setup
    output: Path


def main(argv: Sequence[str]) -> None:
    """Run the benchmark.

    Raises:
        ConfigError: an option's value that is not allowed.
    """
    settings = parse(argv)
    if not settings.batch:
        settings = dataclasses.replace(settings, batch=fit.largest_batch(partial(holds_batch, settings)))
        print(f"batch {settings.batch}: the largest power of two that every mode holds")
    measure_modes(settings, Rows(settings.output, STEP_COLUMNS, _common_columns(settings)))


def measure_modes(settings: Settings, rows: Rows) -> None:
    """Time, count and measure every mode; write the rows and print the summary."""
    network = create_network(settings)
    modes = [create_mode(settings, name, network) for name in settings.modes]
    images, targets = synthetic_batch(settings)
    draws = time_modes(settings, modes, network, images, targets, rows)
    settings = dataclasses.replace(settings, draws=draws)
    if settings.flops:
        count_modes(settings, modes, network, rows)
    if settings.memory:
        measure_memory(settings, modes, network, images, targets, rows)
    if settings.device.type == "cuda":
        measure_power(settings, modes, network, images, targets, rows)
    if settings.device.type == "cpu":
        print("CPU timing: these numbers say nothing about a GPU.")
    print(table(summarize(rows.kept, settings.batch)))
    print(f"{len(rows.kept)} rows: {settings.output}")


def holds_batch(settings: Settings, batch: int) -> bool:
    """Whether all modes' networks, and a step of each one's largest draw, fit into the device's memory."""
    settings = dataclasses.replace(settings, batch=batch)
    network = create_network(settings)
    images, targets = synthetic_batch(settings)
    modes = [create_mode(settings, name, network) for name in settings.modes]
    measure.use_backends(benchmark=False)

    def steps() -> None:
        trainees = create_trainees(settings, network, modes)
        for mode in modes:
            draw = mode.worst_draw()
            own = load(settings, mode, images, targets, draw)
            trainees[trainee_key(mode)].train(mode, own, draw)

    return fit.fits(steps)


def parse(argv: Sequence[str]) -> Settings:
    """Options to checked settings.

    Raises:
        ConfigError: a value that is not allowed.
    """
    options = _parser().parse_args(list(argv))
    device = measure.choose_device(options.device)
    names = tuple(options.modes.split(",")) if options.modes else DEFAULT_MODES
    if not math.isinf(options.minutes) and not options.minutes >= 0:  # NaN compares false
        raise ConfigError(f"--minutes is {options.minutes:g}; allowed: at least 0")
    check_least(options, draws=1, warmup=0, crop=1, num_classes=1, threads=0, seed=0)
    if options.threads:
        torch.set_num_threads(options.threads)
    sizes = _sizes(options.sizes, options.crop)
    return Settings(
        device=device,
        model=options.model,
        batch=_batch(options.batch, device),
        draws=options.draws,
        minutes=options.minutes,
        warmup=options.warmup,
        modes=tuple(dict.fromkeys(names)),
        precision=measure.choose_precision(options.precision, device),
        memory=options.memory,
        flops=not options.no_flops,
        num_classes=options.num_classes,
        setup=Setup(options.subnets, options.space, options.crop, sizes, options.seed),
        output=options.output or default_output("step", device),
    )


def _batch(text: str, device: torch.device) -> int:
    """Images per step; 0: as many as fit, which only a GPU says."""
    if text == "fit" and device.type == "cuda":
        return 0
    if not text.isdecimal() or int(text) < 2:
        allowed = "at least 2, or fit" if device.type == "cuda" else "at least 2 (fit on a GPU)"
        raise ConfigError(f"--batch is {text}; allowed: {allowed}")
    return int(text)


def _sizes(text: str, crop: int) -> tuple[int, ...]:
    if not text:
        return default_sizes(crop)
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise ConfigError(f"--sizes is {text!r}; allowed: sides in pixels, such as 96,128,160") from None
    if not all(1 <= size <= crop for size in sizes):
        raise ConfigError(f"--sizes is {text}; allowed: 1 to the crop, {crop} pixels")
    return sizes


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench step", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is a GPU")
    add("--model", default="resnet50", help="a network of fasttrain (default: %(default)s)")
    add("--crop", type=int, default=200, help="side of the full-size batch, pixels (%(default)s)")
    add("--batch", default="16", help="images per step, or fit: what a GPU can hold (%(default)s)")
    add("--subnets", type=int, default=6, help="K, subnets per step (%(default)s)")
    add("--space", default="space3", help="sampling space of the modes with K subnets (%(default)s)")
    add("--sizes", default="", help="sides of downscaled batches, pixels (crop 200: 96,112,128,160,176,192)")
    add("--draws", type=int, default=24, help="consecutive draws, measured once per mode (%(default)s)")
    add("--minutes", type=float, default=math.inf, help="start no draw after so long (default: no limit)")
    add("--warmup", type=int, default=1, help="rounds before, not counted (%(default)s)")
    add(
        "--modes",
        default="",
        help=f"some of {','.join(MODES)} (default: all but timm), each with a variant if asked for, one of "
        f"{','.join(VARIANTS)}, as in ct:plain",
    )
    add("--precision", choices=measure.PRECISIONS, default="auto", help="of all but naive (%(default)s)")
    add("--memory", action="store_true", help="measure each mode's peak memory at its largest draw, too")
    add("--no-flops", action="store_true", help="do not count FLOPs (seconds per draw and mode)")
    add("--num-classes", type=int, default=1000, help="outputs of the classifier (%(default)s)")
    add("--threads", type=int, default=0, help="CPU threads of torch (default: its own choice)")
    add("--seed", type=int, default=0, help="of weights, images and draws (%(default)s)")
    add("-o", "--output", type=Path, help="CSV file (default: bench/results/<device>/step.csv)")
    return parser


def _common_columns(settings: Settings) -> dict[str, Any]:
    columns = {"bench": "step", "model": settings.model, "crop": settings.setup.crop, "batch": settings.batch}
    return columns | environment(settings.device)


def create_mode(settings: Settings, name: str, network: StagedNetwork) -> Mode:
    """A mode as the settings want it.

    Raises:
        ConfigError: see `build_mode`; timm's step of a network that timm lacks.
    """
    import timm

    mode = build_mode(name, settings.setup, network, settings.device, settings.precision)
    if isinstance(mode, Timm) and not timm.is_model(settings.model):
        raise ConfigError(
            f"--modes holds {name!r}, --model is {settings.model}; allowed: a network of timm's"
        )
    return mode


def create_trainee(settings: Settings, network: StagedNetwork, mode: Mode) -> Trainee:
    """A copy of the network's weights in training, for modes that are executed like `mode`."""
    if isinstance(mode, Timm):
        import timm

        own: nn.Module = timm.create_model(settings.model, num_classes=settings.num_classes)
    else:
        own = create_model(settings.model, settings.num_classes)
    own.load_state_dict(network.state_dict())
    return Trainee(own, mode, settings.device)


def create_trainees(
    settings: Settings, network: StagedNetwork, modes: Sequence[Mode]
) -> dict[tuple[bool, Variant], Trainee]:
    """One trainee for all modes that are executed alike, by `trainee_key`."""
    one_of_each = {trainee_key(mode): mode for mode in modes}
    return {key: create_trainee(settings, network, mode) for key, mode in one_of_each.items()}


def create_network(settings: Settings) -> StagedNetwork:
    """The network whose weights all modes start from.

    Raises:
        ConfigError: an unknown model, or a crop that it cannot reduce.
    """
    torch.manual_seed(settings.setup.seed)
    network = create_model(settings.model, settings.num_classes)
    if settings.setup.crop < network.reduction:
        raise ConfigError(
            f"--crop is {settings.setup.crop}; allowed: at least {network.reduction} pixels, "
            f"the reduction of {settings.model}"
        )
    return network


def synthetic_batch(settings: Settings) -> tuple[Tensor, Tensor]:
    """Random normal images [B, 3, H, W] and targets [B] on the CPU."""
    rng = torch.Generator().manual_seed(settings.setup.seed)
    crop = settings.setup.crop
    images = torch.randn(settings.batch, 3, crop, crop, generator=rng)
    return images, torch.randint(settings.num_classes, (settings.batch,), generator=rng)


def load(settings: Settings, mode: Mode, images: Tensor, targets: Tensor, draw: Draw) -> Batch:
    """A mode's batch on the device, in the memory format of the mode."""
    format_ = torch.channels_last if mode.variant.channels_last else torch.contiguous_format
    return mode.batch(images.to(settings.device, memory_format=format_), targets.to(settings.device), draw)


def time_modes(
    settings: Settings,
    modes: Sequence[Mode],
    network: StagedNetwork,
    images: Tensor,
    targets: Tensor,
    rows: Rows,
) -> int:
    """Time every mode once per draw; rows are written after each draw. Returns how many draws there were."""
    trainees = create_trainees(settings, network, modes)

    def timed(mode: Mode, draw: Draw) -> float:
        batch = load(settings, mode, images, targets, draw)
        return trainees[trainee_key(mode)].timed(mode, batch, draw)

    if settings.device.type == "cuda":
        _tune(settings, modes, timed, rows)
    for step in range(settings.draws, settings.draws + settings.warmup):
        for mode in modes:
            timed(mode, mode.draw(step))
    begin = time.monotonic()
    for step in range(settings.draws):
        if step and time.monotonic() - begin > 60 * settings.minutes:
            return step
        _progress(f"draw {step + 1} of {settings.draws}")
        turn = step % len(modes)
        for mode in [*modes[turn:], *modes[:turn]]:
            seconds = timed(mode, mode.draw(step))
            add_row(rows, settings, mode, "seconds", seconds, "s", step)
        rows.write()
    return settings.draws


def _tune(
    settings: Settings, modes: Sequence[Mode], timed: Callable[[Mode, Draw], float], rows: Rows
) -> None:
    """Run the whole network at every side once, so that no algorithm is chosen within a measurement.

    What it takes, kernels' compilation included, is a row of the first mode of each trainee.
    """
    done = set()
    for mode in modes:
        begin = time.perf_counter()
        sides = [side for side in mode.options.sizes or (0,) if (trainee_key(mode), side) not in done]
        for side in sides:
            _progress(f"tuning {mode.name}{f' for {side} pixels' if side else ''}")
            timed(mode, Draw((mode.method.full,), (1.0,), (side,)) if side else mode.draw(0))
            done.add((trainee_key(mode), side))
        if sides:
            add_row(rows, settings, mode, "tuning", time.perf_counter() - begin, "s", "first")


def add_row(
    rows: Rows, settings: Settings, mode: Mode, metric: str, value: float, unit: str, draw: int | str
) -> None:
    """Add one measurement of a mode."""
    options = mode.options
    sides = options.sizes
    every = sides == tuple(range(sides[0], sides[-1] + 1)) if len(sides) > 1 else False
    rows.add(
        mode=mode.name,
        metric=metric,
        value=value,
        unit=unit,
        draw=draw,
        subnets=options.subnets,
        space=options.space if options.subnets else "",
        sizes=f"{sides[0]}-{sides[-1]}" if every else " ".join(map(str, sides)),
        **mode.variant.columns(settings.device),
    )


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def count_modes(settings: Settings, modes: Sequence[Mode], network: StagedNetwork, rows: Rows) -> None:
    """Count what the timed steps ran: FLOPs, by the same code on the meta device, and block calls."""
    network = copy.deepcopy(network).to("meta").train()
    crop = settings.setup.crop
    images = torch.empty(settings.batch, 3, crop, crop, device="meta")
    targets = torch.empty(settings.batch, dtype=torch.int64, device="meta")
    known: dict[tuple[object, ...], int] = {}
    for step in range(settings.draws):
        _progress(f"counting FLOPs of draw {step + 1} of {settings.draws}")
        for mode in modes:
            draw = mode.draw(step)
            batch = mode.batch(images, targets, draw)
            key = tree_key(mode, batch, draw)
            if key not in known:
                known[key] = count_flops(mode, network, batch, draw)
            add_row(rows, settings, mode, "flops", known[key], "FLOP", step)
            add_row(rows, settings, mode, "block_calls", mode.block_calls(batch, draw), "calls", step)
        rows.write()


def count_flops(mode: Mode, network: StagedNetwork, batch: Batch, draw: Draw) -> int:
    """FLOPs of a step's forward and backward pass, on a plain network of the meta device."""
    step = train_step(TreeForward(network), mode, torch.device("cpu"), "fp32")
    run = Mode.backward if isinstance(mode, Timm) else type(mode).backward  # timm's network is the same
    return flops.count(lambda: run(mode, step, batch, draw))


def measure_memory(
    settings: Settings,
    modes: Sequence[Mode],
    network: StagedNetwork,
    images: Tensor,
    targets: Tensor,
    rows: Rows,
) -> None:
    """Peak memory of each mode's largest draw, after a step that made the momentum."""
    for mode in modes:
        _progress(f"memory of {mode.name}")
        trainee = create_trainee(settings, network, mode)
        peak, state = step_memory(settings, trainee, mode, images, targets)
        add_row(rows, settings, mode, "peak_bytes", peak, "B", "worst")
        add_row(rows, settings, mode, "state_bytes", state, "B", "worst")
        rows.write()
        del trainee
        gc.collect()


def measure_power(
    settings: Settings,
    modes: Sequence[Mode],
    network: StagedNetwork,
    images: Tensor,
    targets: Tensor,
    rows: Rows,
) -> None:
    """Energy of each mode over consecutive draws, and kernel launches of the first, on a GPU."""
    for mode in modes:
        _progress(f"energy and launches of {mode.name}")
        trainee = create_trainee(settings, network, mode)
        draws = [mode.draw(step) for step in range(settings.draws)]
        batches = [load(settings, mode, images, targets, draw) for draw in draws]
        joules, seconds, calls, launches = step_power(trainee, mode, batches, draws)
        add_row(rows, settings, mode, "joules_per_image", joules / (calls * settings.batch), "J", "mean")
        add_row(rows, settings, mode, "watts", joules / seconds, "W", "mean")
        add_row(rows, settings, mode, "launches", launches, "kernels", 0)
        rows.write()
        del trainee
        gc.collect()


def step_power(
    trainee: Trainee, mode: Mode, batches: Sequence[Batch], draws: Sequence[Draw]
) -> tuple[float, float, int, int]:
    """Joules and seconds of some number of steps, that number, and kernel launches of one."""
    turn = itertools.cycle(zip(batches, draws, strict=True))
    measure.use_backends(benchmark=mode.variant.tuned)
    for _ in draws:  # each shape's algorithms are chosen before
        trainee.train(mode, *next(turn))
    power = measure.energy(trainee.device, lambda: trainee.train(mode, *next(turn)))
    return *power, measure.launches(lambda: trainee.train(mode, batches[0], draws[0]))


def step_memory(
    settings: Settings, trainee: Trainee, mode: Mode, images: Tensor, targets: Tensor
) -> tuple[int, int]:
    """Peak bytes of a step of the mode's largest draw, and the bytes that live before it."""
    draw = mode.worst_draw()
    batch = load(settings, mode, images, targets, draw)
    trainee.timed(mode, batch, draw)
    return measure.peak_bytes(
        settings.device,
        lambda: trainee.train(mode, batch, draw),
        [*trainee.state(), *batch.tensors()],
    )
