"""Curves as text: braille characters, each of 2 by 4 dots."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from rich.text import Text

Points = Sequence[tuple[float, float]]

COLOURS = ("cyan", "magenta", "yellow")
"""Of the first curve, the second, ..."""

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of the dot in (row, column) of a braille character, whose code is 0x2800 and the bits."""

_LABEL = 9


def plot(curves: Sequence[Points], width: int, height: int) -> Text:
    """Curves over a common x axis; the later ones lie above.

    Args:
        curves: points of each, in order of x; those that are not finite are left out.
        width: of the whole, in characters.
        height: likewise; the last line labels the x axis.

    Returns:
        `height` lines.
    """
    curves = [[point for point in curve if all(map(math.isfinite, point))] for curve in curves]
    everything = [point for curve in curves for point in curve]
    rows, columns = max(1, height - 1), max(1, width - _LABEL - 1)
    if not everything:
        return Text("\n".join(["no values yet".center(width)] + [""] * rows))
    (left, right), (low, high) = (_span([point[axis] for point in everything]) for axis in (0, 1))
    cells: dict[tuple[int, int], tuple[int, str]] = {}
    for curve, colour in zip(curves, COLOURS, strict=False):
        dots = [
            (
                round((x - left) / (right - left) * (2 * columns - 1)),
                round((high - y) / (high - low) * (4 * rows - 1)),
            )
            for x, y in curve
        ]
        for column, row in _joined(_one_per_column(dots)):
            key = row // 4, column // 2
            bits, _ = cells.get(key, (0, ""))
            cells[key] = bits | _DOTS[row % 4][column % 2], colour
    text = Text()
    for row in range(rows):
        label = {0: f"{high:.4g}", rows - 1: f"{low:.4g}"}.get(row, "")
        text.append(f"{label:>{_LABEL}} ", "dim")
        for column in range(columns):
            bits, colour = cells.get((row, column), (0, ""))
            text.append(chr(0x2800 + bits) if bits else " ", colour)
        text.append("\n")
    ends = f"{left:,.0f}", f"{right:,.0f}"
    text.append(" " * (_LABEL + 1) + ends[0] + ends[1].rjust(columns - len(ends[0])), "dim")
    return text


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Least and largest; some space around a single value."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _one_per_column(dots: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Many dots of a column as their mean."""
    rows: dict[int, list[int]] = {}
    for column, row in dots:
        rows.setdefault(column, []).append(row)
    return [(column, round(fmean(own))) for column, own in sorted(rows.items())]


def _joined(dots: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The dots and straight lines between them."""
    yield from dots[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(dots):
        steps = max(x1 - x0, abs(y1 - y0))
        for step in range(1, steps + 1):
            yield x0 + round(step * (x1 - x0) / steps), y0 + round(step * (y1 - y0) / steps)
