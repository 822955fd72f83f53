"""What a comparison shows: a row per recipe, ties said to be ties; as a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from ..telemetry.environment import environment
from ..telemetry.files import replace_text, write_json
from .cost import Cost
from .runs import Verdict


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over seeds, and their standard deviation (n - 1); None of one seed."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        """With two digits."""
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


def spread(values: Sequence[float]) -> Spread:
    """Of some seeds' values."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True, slots=True)
class Row:
    """A recipe in the comparison; accuracies are Top-1 in percent.

    Attributes:
        recipe: its name.
        step_ms: mean milliseconds of a training step.
        time: of a step, over the baseline's.
        memory: peak of a step, over the baseline's.
        main: the main network.
        subnets: mean over all subnets.
        deviation: standard deviation over all subnets.
        seeds: how many.
    """

    recipe: str
    step_ms: float
    time: float
    memory: float
    main: Spread
    subnets: Spread
    deviation: Spread
    seeds: int


JUDGED = {"main": "main network", "subnets": "mean of all subnets"}
"""Columns whose highest is told, and their names."""


def rows_of(costs: Mapping[str, Cost], verdicts: Mapping[str, Sequence[Verdict]], baseline: str) -> list[Row]:
    """A row for each recipe that has a verdict; costs are over the baseline's."""
    base = costs[baseline]
    return [
        Row(
            recipe=label,
            step_ms=1e3 * costs[label].seconds,
            time=costs[label].seconds / base.seconds,
            memory=costs[label].bytes / base.bytes,
            main=spread([each.main for each in own]),
            subnets=spread([fmean(each.subnets) for each in own]),
            deviation=spread([pstdev(each.subnets) for each in own]),
            seeds=len(own),
        )
        for label, own in verdicts.items()
        if own
    ]


def ties(rows: Sequence[Row], column: str) -> list[str]:
    """The recipe with the highest mean of a column first, and those that tie with it.

    A tie: the means differ by no more than one standard deviation over the seeds, the larger of the two.
    """
    best = max(rows, key=lambda row: getattr(row, column).mean)
    top: Spread = getattr(best, column)
    tied = []
    for row in rows:
        own: Spread = getattr(row, column)
        if row is not best and top.mean - own.mean <= max(top.deviation or 0.0, own.deviation or 0.0):
            tied.append(row.recipe)
    return [best.recipe, *tied]


def verdict_line(rows: Sequence[Row], column: str) -> str:
    """Which recipe is highest in a column, in words."""
    best, *tied = ties(rows, column)
    if any(row.seeds < 2 for row in rows):
        return f"{JUDGED[column]}: {best} is highest, of one seed, which tells nothing of ties"
    if tied:
        return f"{JUDGED[column]}: a tie within one standard deviation of {best}, {', '.join(tied)}"
    return f"{JUDGED[column]}: {best} is highest, by more than one standard deviation"


def write(folder: Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write comparison.json and comparison.csv into a folder."""
    told = {column: ties(rows, column) for column in JUDGED}
    table = [asdict(row) for row in rows]
    write_json(
        folder / "comparison.json", {**about, "rows": table, "ties": told, "environment": environment()}
    )
    text = io.StringIO()
    lines = [_flat(row) for row in rows]
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    replace_text(folder / "comparison.csv", text.getvalue())


def _flat(row: Row) -> dict[str, object]:
    """A row without nesting: a mean under its column's name, its deviation beside it."""
    values: dict[str, object] = {}
    for name, value in asdict(row).items():
        if isinstance(value, dict):
            values |= {name: value["mean"], f"{name}_deviation_over_seeds": value["deviation"]}
        else:
            values[name] = value
    return values


def show(rows: Sequence[Row], title: str, baseline: str) -> None:
    """Print the table, and what is highest."""
    table = Table(title=title)
    columns = ("recipe", "step, ms", f"time over {baseline}'s", "peak memory over its", "main network")
    for column in (*columns, "all subnets: mean", "deviation", "seeds"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for row in rows:
        costs = f"{row.step_ms:.1f}", f"{row.time:.2f}", f"{row.memory:.2f}"
        table.add_row(row.recipe, *costs, str(row.main), str(row.subnets), str(row.deviation), str(row.seeds))
    console = Console(width=None if Console().is_terminal else 130, highlight=False)
    console.print(table)
    for column in JUDGED:
        console.print(verdict_line(rows, column), markup=False)
