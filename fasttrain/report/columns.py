"""Tables with a column per run, and how values are written in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..telemetry.words import duration
from .html import MISSING, Markup, table
from .reading import RunData

Value = Callable[[RunData], object]
"""A row's cell, of a run."""


def by_run(runs: Sequence[RunData], rows: Sequence[tuple[str, Value]]) -> Markup:
    """A column per run; rows of which nothing is known are left out."""
    cells = [(name, *(value(run) for run in runs)) for name, value in rows]
    known = [row for row in cells if any(each != MISSING for each in row[1:])]
    return table(["", *(run.name for run in runs)], known)


def about(run: RunData, runs: Sequence[RunData], words: str) -> str:
    """A sentence on a run, which is named where there are more."""
    return words[:1].upper() + words[1:] if len(runs) == 1 else f"{run.name}: {words}"


def shown(value: float | None, form: str = "{:,.2f}") -> str:
    """A number in a form; `MISSING` of None."""
    return MISSING if value is None else form.format(value)


def percent(share: float | None) -> str:
    """A share in percent."""
    return MISSING if share is None else f"{100 * share:.1f}"


def time(seconds: float | None) -> str:
    """Seconds in words."""
    return MISSING if seconds is None else duration(seconds)


def moment(value: object) -> str:
    """A time as `telemetry.files.now` writes it, for people."""
    return str(value or "?").replace("T", " ").removesuffix("Z")
