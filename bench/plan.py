"""`python -m bench plan`: hours and energy of a recipe on so many GPUs, and how it scales to 1,024.

A model: one GPU's step (rows of `bench step`; where a GPU has none, estimated from published figures and the
ratios that were measured elsewhere), and the all-reduce of the gradients (see `bench.links`). Each figure is
labelled measured or estimated. Below the tables stand the model beside recorded figures, and its assumptions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from fasttrain.config import Config
from fasttrain.distributed import local_batch
from fasttrain.errors import ConfigError
from fasttrain.recipes import recipe as find_recipe

from .arguments import Parser, check_least
from .forecast import (
    BLOCK_SECONDS,
    GPUS_PER_NODE,
    Assumptions,
    Forecast,
    forecast,
    scaling,
    shape_of,
)
from .links import Link
from .plan_check import IMAGENET_IMAGES, Check, checks
from .published import GPUS, PROTOCOL, find_gpu
from .rates import find_rate, read_files, work_of
from .rows import PLACE, RESULTS, Rows, computed
from .summary import table

COLUMNS = (
    *("bench", "part", "recipe", "gpu", "gpus", "nodes", "batch_per_gpu", "metric", "value", "unit"),
    *("recorded", "label", "source"),
    *PLACE,
)
"""`part`: plan, weak (scaling at fixed images per GPU), fixed (at fixed images in all) or check."""


def main(argv: Sequence[str]) -> None:
    """Predict, check and print; with -o write the rows.

    Raises:
        ConfigError: an option's value that is not allowed.
    """
    options = _parser().parse_args(list(argv))
    assumptions = _assumptions(options)
    recipe, files = find_recipe(options.recipe), read_files(options.results)
    columns = {"bench": "plan", "recipe": options.recipe} | computed()
    rows = Rows(options.output, COLUMNS, columns) if options.output else None
    gpus = options.gpu.split(",")
    for gpu in gpus:
        find_gpu(gpu)
    batch = options.batch_per_gpu or local_batch(recipe.run.batch, options.gpus)
    shape = shape_of(options.gpus, batch, options.nodes)
    plans = [
        forecast(recipe, gpu, find_rate(work_of(recipe), gpu, files), shape, options.images, assumptions)
        for gpu in gpus
    ]
    print_plans(recipe, plans, options.images, assumptions, rows)
    print("\nCheck: the model beside what was recorded.")
    found = list(checks(files, assumptions))
    print(table([_check_line(check) for check in found]))
    print("\n" + "\n".join(_notes(assumptions)))
    if rows:
        for check in found:
            _add_check(rows, check)
        rows.write()
        print(f"{len(rows.kept)} rows: {options.output}")


def print_plans(
    recipe: Config, plans: Sequence[Forecast], images: int, assumptions: Assumptions, rows: Rows | None
) -> None:
    """Print each GPU's plan and its scaling, and add them to the rows."""
    shape, steps = plans[0].shape, plans[0].steps
    print(
        f"{recipe.recipe} on {shape.gpus} GPUs, {shape.nodes} node{'s' * (shape.nodes > 1)}: "
        f"{recipe.run.epochs} epochs of {images:,} images at {recipe.data.crop} pixels, {steps:,} steps "
        f"of {shape.batch * shape.gpus:,} images, {shape.batch} per GPU"
    )
    print(table([_plan_line(plan) for plan in plans]))
    print("~ estimated")
    for plan in plans:
        print(f"{plan.gpu}, {plan.rate.label}: {plan.rate.source}")
        _add(rows, "plan", plan)
    for plan in plans:
        total = shape.batch * shape.gpus
        print(f"\n{plan.gpu}, scaling: {shape.batch} images per GPU (left), {total} in all (right)")
        lines = []
        alone: dict[str, float] = {}  # images/s of one GPU, which the percentages refer to
        for gpus, weak, fixed in scaling(recipe, plan, images, assumptions):
            cells = _scaling_cells(weak, "", alone) | _scaling_cells(fixed, " ", alone)
            lines.append({"GPUs": f"{gpus:,}"} | cells)
            _add(rows, "weak", weak)
            _add(rows, "fixed", fixed)
        print(table(lines))


def _plan_line(plan: Forecast) -> dict[str, str]:
    forms = {"steps": ",.0f", "rate": ",.0f", "hours": ".2f", "energy": ".0f"}
    line = {"GPU": plan.gpu}
    for name, (value, unit, label) in plan.metrics().items():
        mark = "~" if label == "estimated" else ""
        line[f"{name}, {unit}" if name != unit else name] = f"{mark}{value:{forms.get(name, '.1f')}}"
    per_gpu = plan.images_per_second / plan.shape.gpus
    return line | {"img/s per GPU": f"{per_gpu:,.0f}", "one GPU's step": plan.rate.label}


def _scaling_cells(own: Forecast | None, mark: str, alone: dict[str, float]) -> dict[str, str]:
    """A forecast's columns; `mark` tells two groups of equal names apart, in `alone` too."""
    names = [f"{name}{mark}" for name in ("per GPU", "step ms", "exposed", "img/s", "%", "hours")]
    if own is None:
        return dict.fromkeys(names, "-")
    alone.setdefault(mark, own.images_per_second / own.shape.gpus)
    cells = (
        f"{own.shape.batch}",
        f"{1e3 * own.step:.1f}",
        f"{1e3 * own.exposed:.1f}",
        f"{own.images_per_second:,.0f}",
        f"{100 * own.images_per_second / (own.shape.gpus * alone[mark]):.1f}",
        f"{own.hours:.2f}",
    )
    return dict(zip(names, cells, strict=True))


def _check_line(check: Check) -> dict[str, str]:
    return {
        "what": check.what,
        "model": f"{check.model:.2f}",
        "recorded": f"{check.recorded:.2f}",
        "unit": check.unit,
        "error": f"{100 * check.error:+.1f} %",
    }


def _add(rows: Rows | None, part: str, own: Forecast | None) -> None:
    if rows is None or own is None:
        return
    for name, (value, unit, label) in own.metrics().items():
        rows.add(
            part=part,
            gpu=own.gpu,
            gpus=own.shape.gpus,
            nodes=own.shape.nodes,
            batch_per_gpu=own.shape.batch,
            metric=name,
            value=f"{value:.6g}" if name != "steps" else value,
            unit=unit,
            label=label,
            source=own.rate.source,
        )


def _add_check(rows: Rows, check: Check) -> None:
    rows.add(
        part="check",
        recipe="",
        metric=check.what,
        value=f"{check.model:.6g}",
        unit=check.unit,
        recorded=f"{check.recorded:.6g}",
        label="estimated",
        source=check.source,
    )


def _notes(assumptions: Assumptions) -> Iterator[str]:
    yield "Assumptions:"
    for name, gpu in GPUS.items():
        links = assumptions.nvlink or gpu.nvlink, assumptions.network or gpu.network
        speeds = [f"{link.bandwidth / 1e9:g} GB/s, {1e6 * link.latency:g} us a step" for link in links]
        yield f"- {name}: NVLink {speeds[0]}; network {speeds[1]} per GPU ({PROTOCOL:.0%} of line rates)."
    yield (
        f"- Gradients of {assumptions.gradient_bytes} bytes per parameter in DDP's buckets of 25 MiB; all "
        "but the last hide behind the main network's backward pass (2/3 of a plain step) and slow nothing."
    )
    yield (
        f"- A block call takes at least {1e6 * assumptions.block_seconds:g} us of the host; with more images "
        "per GPU a step takes longer in proportion. Other GPUs and nodes are as fast: no stragglers."
    )
    yield f"- Data wait: {assumptions.data_wait:.0%} of a step. The hours hold no evaluation, no checkpoint."
    yield (
        f"- Energy: GPU boards alone, {assumptions.utilisation:.0%} of their power limit where joules "
        "were not measured. More images in a global batch than the recipe's: no claim about accuracy."
    )


def _assumptions(options: argparse.Namespace) -> Assumptions:
    """Options to assumptions.

    Raises:
        ConfigError: a value that is not allowed.
    """
    check_least(options, gpus=1, nodes=0, batch_per_gpu=0, images=1)
    for name, high in (("data_wait", 0.99), ("utilisation", 1.0), ("block_us", 1e6)):
        if not 0 <= getattr(options, name) <= high:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is {getattr(options, name):g}; allowed: 0 to {high:g}")
    return Assumptions(
        block_seconds=1e-6 * options.block_us,
        data_wait=options.data_wait,
        utilisation=options.utilisation,
        gradient_bytes={"fp32": 4, "bf16": 2}[options.gradients],
        nvlink=_link("--nvlink", options.nvlink),
        network=_link("--network", options.network),
    )


def _link(flag: str, text: str) -> Link | None:
    """GB/s and microseconds, such as 240,3.4; nothing: None.

    Raises:
        ConfigError: something else.
    """
    if not text:
        return None
    try:
        bandwidth, latency = (float(part) for part in text.split(","))
    except ValueError:
        bandwidth, latency = 0.0, 0.0
    if not (1e-3 <= bandwidth <= 1e6 and 0 <= latency <= 1e6):  # NaN compares false
        raise ConfigError(f"{flag} is {text!r}; allowed: GB/s and microseconds, such as 240,3.4")
    return Link(1e9 * bandwidth, 1e-6 * latency)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench plan", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add(
        "--recipe", default="rn50-stpp-a1", help="a recipe of fasttrain, or a run's config.json (%(default)s)"
    )
    add("--gpu", default="a100", help=f"one or more of {','.join(GPUS)} (%(default)s)")
    add("--gpus", type=int, default=8, help="GPUs in all (%(default)s)")
    add("--nodes", type=int, default=0, help=f"that hold them (default: {GPUS_PER_NODE} GPUs each)")
    add("--batch-per-gpu", type=int, default=0, help="images (default: the recipe's batch, divided)")
    add("--images", type=int, default=IMAGENET_IMAGES, help="training images (ImageNet's: %(default)s)")
    add("--gradients", choices=("fp32", "bf16"), default="fp32", help="on the wire (%(default)s)")
    add("--nvlink", default="", help="a GPU's within a node: GB/s,us, such as 240,3.4 (default: by the GPU)")
    add("--network", default="", help="a GPU's between nodes: GB/s,us, such as 20,14 (default: by the GPU)")
    add("--block-us", type=float, default=1e6 * BLOCK_SECONDS, help="host time per block call (%(default)g)")
    add("--data-wait", type=float, default=0.01, help="share of a step (%(default)s)")
    add("--utilisation", type=float, default=0.9, help="of the boards' power limit (%(default)s)")
    add("--results", type=Path, default=RESULTS, help="folder of <device>/step.csv (%(default)s)")
    add("-o", "--output", type=Path, help="CSV file (default: none; the README's is bench/results/plan.csv)")
    return parser
