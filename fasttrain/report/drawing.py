"""A report's pictures: SVG to be put into a page, in the page's own text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Any

from ..errors import ConfigError
from ..telemetry.curves import Points

COLOURS = ("#3f83c9", "#d9772b", "#2c9c6c", "#c8507f", "#8a6fd0", "#8a8a30", "#2a9bb0", "#b5624b")
"""Of the first run, the second, ...: contrast at least 3 on white and on the dark page."""

LINES = ("-", "--", ":")
"""Of the first kind of curve in a picture, the second, the third."""

MOST = 400
"""Points of a curve that are drawn."""

_INK = "#010203"
"""Stands for the page's text colour until the picture is done."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one run: its number, and which of the picture's kinds they are."""

    points: Points
    run: int
    kind: int = 0


@dataclass(frozen=True, slots=True)
class Dots:
    """Values of one run over whole numbers, as dots or circles, and a line at another of its values."""

    points: Points
    run: int
    level: float | None = None
    hollow: bool = False


def colour(run: int) -> str:
    """Of a run, by its number in the report."""
    return COLOURS[run % len(COLOURS)]


def thin(points: Points) -> list[tuple[float, float]]:
    """At most `MOST` points: each the mean of its neighbours."""
    bundle = -(-len(points) // MOST)
    groups = (points[first : first + bundle] for first in range(0, len(points), bundle or 1))
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def draw_curves(
    curves: Sequence[Curve], identity: str, label: str, alt: str, *, from_zero: bool = False
) -> str:
    """Curves over the steps, as SVG; solid, dashed and dotted by kind, single points as dots.

    Args:
        curves: at least one with a point.
        identity: of the picture in its page.
        label: of the vertical axis.
        alt: the picture in words.
        from_zero: whether the vertical axis begins there.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure, axes = _figure("step", label)
    last = max(each.run for each in curves)
    for each in curves:
        points = thin(each.points)
        axes.plot(
            [px for px, _ in points],
            [py for _, py in points],
            color=colour(each.run),
            linestyle=LINES[each.kind % len(LINES)],
            linewidth=min(4.0, 1.5 + 1.1 * (last - each.run)),  # equal curves show, the first below the last
            marker="o" if len(points) < 12 else None,
            markersize=3.5,
        )
    if from_zero:
        axes.set_ylim(bottom=0)
    return _svg(figure, identity, alt)


def draw_dots(series: Sequence[Dots], identity: str, x: str, y: str, alt: str) -> str:
    """Dots side by side over whole numbers, and dashed levels, as SVG; see `draw_curves`."""
    figure, axes = _figure(x, y)
    for index, each in enumerate(series):
        shift = 0.5 * ((index + 0.5) / len(series) - 0.5)
        axes.scatter(
            [px + shift for px, _ in each.points],
            [py for _, py in each.points],
            facecolors="none" if each.hollow else colour(each.run),
            edgecolors=colour(each.run),
            alpha=0.75,
            s=18,
            linewidths=0.9 if each.hollow else 0,
        )
        if each.level is not None:
            axes.axhline(each.level, color=colour(each.run), linewidth=1.2, linestyle="--")
    axes.xaxis.get_major_locator().set_params(nbins=16)
    return _svg(figure, identity, alt)


def _figure(x: str, y: str) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise ConfigError("the report needs matplotlib: pip install 'fasttrain[report]'") from None
    figure = Figure(figsize=(5.4, 3.1), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.tick_params(colors=_INK)
    axes.grid(color=_INK, alpha=0.15)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure, axes


def _svg(figure: Any, identity: str, alt: str) -> str:
    """The figure's picture alone, its names its own among those of a page, sized by the page."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": identity}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    rest = re.sub(r'\bid="', f'id="{identity}-', rest)
    rest = re.sub(r'(?:xlink:)?href="#', f'href="#{identity}-', rest)
    rest = rest.replace("url(#", f"url(#{identity}-").replace(_INK, "currentColor")
    return f'<svg {box[0]} role="img" aria-label="{escape(alt)}">{rest.strip()}'
