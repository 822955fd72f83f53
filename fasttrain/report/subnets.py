"""A run's subnets: how well each does on its own (ST Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence

from .columns import about
from .drawing import Dots, draw_dots
from .figures import Subnets, subnets
from .html import Markup, element, figure, folded, paragraph, table
from .legend import legend
from .reading import RunData

Found = Sequence[tuple[int, RunData, Subnets]]
"""Number of the run, the run, and a report on its subnets."""


def subnets_of(runs: Sequence[RunData]) -> list[Markup]:
    """Table, picture, and every subnet to be unfolded."""
    found = [(index, run, own) for index, run in enumerate(runs) for own in subnets(run)]
    if not found:
        return [paragraph("No subnets were evaluated (evaluation.subnets, or fasttrain evaluate).", "soft")]
    every = (_every(run, runs, own) for _, run, own in found)
    return [_table(found), *legend(runs), element("div", _picture(found), kind="figures"), *every]


def _table(found: Found) -> Markup:
    head = ["run", "batch-norm statistics", "subnets", "mean, %", "deviation", "best, %", "worst, %", "from"]
    rows = [
        (
            *(run.name, own.whose, len(own.top1)),
            *(f"{own.mean:.2f}", f"{own.deviation:.2f}", _ranked(own, -1), _ranked(own, 0), own.source),
        )
        for _, run, own in found
    ]
    return table(head, rows)


def _picture(found: Found) -> Markup:
    series = []
    for index, _, own in found:
        points = [(sum(depths), top1) for depths, top1 in zip(own.depths, own.top1, strict=True)]
        series.append(Dots(points, index, own.main, hollow=own.statistics == "main"))
    alt = "; ".join(
        f"{run.name}: {len(own.top1)} subnets, Top-1 {own.ranked[0][0]:.1f} to {own.ranked[-1][0]:.1f} %"
        for _, run, own in found
    )
    words = "each on its own; dashed: the main network"
    if any(each.hollow for each in series):
        words += "; circles: with its statistics"
    return figure(draw_dots(series, "subnets", _BLOCKS, "Top-1, %", alt), "Top-1 of the subnets", words)


_BLOCKS = "residual blocks that the subnet keeps"


def _ranked(own: Subnets, place: int) -> str:
    top1, depths = own.ranked[place]
    return f"{top1:.2f} ({_depths(depths)})"


def _depths(depths: Sequence[int]) -> str:
    return "-".join(map(str, depths))


MOST = 500
"""Subnets that are listed one by one."""


def _every(run: RunData, runs: Sequence[RunData], own: Subnets) -> Markup:
    rows = [(_depths(depths), sum(depths), f"{top1:.2f}") for top1, depths in reversed(own.ranked)]
    title = about(run, runs, f"each subnet, with {own.whose} statistics")
    if len(rows) > MOST:
        title += f" (the best {MOST} of {len(rows)})"
    return folded(title, table(["blocks per stage", "blocks", "Top-1, %"], rows[:MOST]))
