"""Which colour is which run."""

from __future__ import annotations

from collections.abc import Sequence

from .drawing import colour
from .html import Markup, bullets, text
from .reading import RunData


def swatch(run: int) -> Markup:
    """A spot in the colour of a run, by its number in the report."""
    return Markup(f'<span class="swatch" style="background: {colour(run)}"></span>')


def legend(runs: Sequence[RunData]) -> list[Markup]:
    """The runs and their colours; nothing for a single run."""
    lines = [Markup(swatch(index) + text(run.name)) for index, run in enumerate(runs)]
    return [bullets(lines, kind="legend")] if len(runs) > 1 else []
