"""`python -m bench growth`: how a step's cost grows with K, R and depth, in FLOPs of a plain step.

Computed, not timed: the mean over draws of what the prefix tree runs (see `bench.costs`), beside the naive
growth, each subnet a pass of its own on the published inputs. Writes a CSV file and, with matplotlib, a plot.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttrain import config
from fasttrain.recipes.imagenet import FAST_SIZES, FAST_SIZES_CROP

from .arguments import Parser, check_least
from .costs import meta_network, naive_cost, plain_cost, step_cost
from .modes import MODES, Setup
from .plots import axes
from .rows import PLACE, RESULTS, Row, Rows, computed
from .summary import table

COLUMNS = (
    *("bench", "quantity", "value", "curve", "model", "blocks", "crop", "space", "subnets"),
    *("sizes_per_step", "tree", "naive", "unit"),
    *PLACE,
)

CROP, K = FAST_SIZES_CROP, 6  # of the recipe rn50-stpp-a1
LARGEST_K = 16
MODELS = ("resnet50", "resnet101", "resnet152")
SPACE = "min=3"
"""At least three blocks per stage: space3 of ResNet-50, and defined for deeper ones too."""

CURVES = {
    "stpp": "ST++, one small batch",
    "coupled": "ST++, coupled draws",
    "sizes": "ST++, K = 6",
    "full": "full-size subnets",
    "default": "ST++, all depths",
    "st": "ST, one full-size subnet",
}
"""Name to words: `stpp` downscaled, the sampling space min=3; `default` the same in the default space."""


@dataclass(frozen=True, slots=True)
class Point:
    """One place on a curve.

    Attributes:
        quantity: what grows: K, R or depth.
        value: its value; of depth the network's residual blocks.
        curve: key of `CURVES`.
        model: network.
        options: the method.
        naive: the method that each subnet's own pass is taken from.
    """

    quantity: str
    value: int
    curve: str
    model: str
    options: config.Method
    naive: config.Method


def main(argv: Sequence[str]) -> None:
    """Compute, write and plot.

    Raises:
        ConfigError: an option's value that is not allowed.
    """
    options = _parser().parse_args(list(argv))
    check_least(options, draws=1, largest_k=1)
    models = tuple(options.models.split(","))
    rows = Rows(
        options.output, COLUMNS, {"bench": "growth", "crop": CROP, "unit": "plain steps"} | computed()
    )
    for point in points(models, options.largest_k):
        add_point(rows, point, options.draws)
    rows.write()
    print(table([_line(row) for row in rows.kept]))
    print(f"{len(rows.kept)} rows: {options.output}")
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: it needs matplotlib")
        return
    plot(rows.kept, options.output.with_suffix(".png"))
    print(f"plot: {options.output.with_suffix('.png')}")


def points(models: Sequence[str], largest: int) -> Iterator[Point]:
    """All that is computed: K and R of the first model, depth over all of them."""
    first = models[0]
    for count in range(largest + 1):
        yield _point("K", count, "stpp", first, "stpp-r1", _setup(count))
        yield _point("K", count, "coupled", first, "stpp-coupled", _setup(count))
        yield _point("K", count, "full", first, "st-k", _setup(count))
    for sizes in range(1, K + 1):
        point = _point("R", sizes, "sizes", first, "stpp-r1", _setup(K))
        yield dataclasses.replace(point, options=dataclasses.replace(point.options, sizes_per_step=sizes))
    for model in models:
        blocks = sum(meta_network(model).depths)
        yield _point("depth", blocks, "stpp", model, "stpp-r1", _setup(K))
        yield _point("depth", blocks, "default", model, "stpp-r1", _setup(K, "default"))
        yield _point("depth", blocks, "st", model, "st", _setup(1, "default"))


def _setup(count: int, space: str = SPACE) -> Setup:
    return Setup(count, space, CROP, FAST_SIZES, seed=0)


def _point(quantity: str, value: int, curve: str, model: str, mode: str, setup: Setup) -> Point:
    options = MODES[mode](setup)
    naive = options if options.subnet_inputs == "full" else MODES["naive"](setup)
    return Point(quantity, value, curve, model, options, naive)


def add_point(rows: Rows, point: Point, draws: int) -> None:
    """Compute a point and add it as a row.

    Raises:
        ConfigError: an unknown network.
    """
    plain = plain_cost(point.model, CROP).flops
    rows.add(
        quantity=point.quantity,
        value=point.value,
        curve=point.curve,
        model=point.model,
        blocks=sum(meta_network(point.model).depths),
        space=point.options.space,
        subnets=point.options.subnets,
        sizes_per_step=point.options.sizes_per_step if point.options.sizes else "",
        tree=f"{step_cost(point.model, point.options, CROP, draws=draws).flops / plain:.4f}",
        naive=f"{naive_cost(point.model, point.naive, CROP, draws=draws).flops / plain:.4f}",
        n=draws,
    )


def _line(row: Row) -> dict[str, str]:
    tree, naive = float(row["tree"]), float(row["naive"])
    line = {"": f"{row['quantity']} = {row['value']}", "network": row["model"], "curve": CURVES[row["curve"]]}
    return line | {"tree": f"{tree:.2f}", "naive": f"{naive:.2f}", "naive/tree": f"{naive / tree:.2f}"}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Three panels, K, R and depth: the tree's cost as lines, that of separate passes dashed, as a PNG."""
    labels = {
        "K": "K, subnets per step",
        "R": "R, input sizes per step",
        "depth": "residual blocks of the network",
    }
    colours = {curve: f"C{index}" for index, curve in enumerate(CURVES)}
    with axes(path, 12, 4.2, panels=len(labels)) as panels:
        for panel, (quantity, label) in zip(panels, labels.items(), strict=True):
            own = [row for row in rows if row["quantity"] == quantity]
            for curve in dict.fromkeys(row["curve"] for row in own):
                _plot_curve(panel, [row for row in own if row["curve"] == curve], colours[curve])
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.set(xlabel=label, ylabel="FLOPs of a step, in plain steps", ylim=(0, None))
            panel.set_title("prefix tree; dashed: separate passes", fontsize=9)
            panel.grid(alpha=0.3)
            panel.legend(fontsize=7)


def _plot_curve(panel: Any, rows: Sequence[Row], colour: str) -> None:
    x = [int(row["value"]) for row in rows]
    panel.plot(
        x, [float(row["tree"]) for row in rows], color=colour, marker=".", label=CURVES[rows[0]["curve"]]
    )
    if rows[0]["curve"] != "coupled":  # whose published step is stpp's
        panel.plot(x, [float(row["naive"]) for row in rows], "--", color=colour, marker=".")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench growth", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("--draws", type=int, default=200, help="consecutive draws that a value is the mean of (%(default)s)")
    add("--largest-k", type=int, default=LARGEST_K, help="K goes from 0 to this (%(default)s)")
    add("--models", default=",".join(MODELS), help="networks; K and R of the first (%(default)s)")
    add("-o", "--output", type=Path, default=RESULTS / "growth.csv", help="CSV file (%(default)s)")
    return parser
