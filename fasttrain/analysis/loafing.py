"""The loafing plot: how well each subnet does on its own (ST Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Series:
    """The subnets of one network.

    Attributes:
        label: what to call it.
        main: the main network's Top-1, percent.
        top1: each subnet's.
        mean: of the subnets.
        deviation: of the subnets.
        x: where each stands on the x axis.
    """

    label: str
    main: float
    top1: Sequence[float]
    mean: float
    deviation: float
    x: Sequence[float]


def draw_loafing(axes: Any, series: Sequence[Series]) -> None:
    """Top-1 of each subnet, one colour per network, and a line for the main network's."""
    for index, each in enumerate(series):
        colour = f"C{index}"
        label = f"{each.label}: {each.mean:.1f} ± {each.deviation:.1f} %, worst {min(each.top1):.1f} %"
        axes.scatter(each.x, each.top1, s=26, color=colour, alpha=0.75, label=label)
        axes.axhline(
            each.main,
            color=colour,
            linewidth=1,
            linestyle="--",
            label=f"{each.label}: main network {each.main:.1f} %",
        )
