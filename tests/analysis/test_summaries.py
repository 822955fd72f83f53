"""Summaries over subnets leave out the main network, which a space holds but which is its own measure."""

from __future__ import annotations

from typing import Any

import pytest

from fasttrain.analysis import amplitude, bound, kl
from fasttrain.analysis.output import new_figure

FULL, DEPTHS = (2, 2), [(1, 1), (1, 2), (2, 2), (2, 1)]
ALONE = [FULL]


def kl_of(depths: list[Any], values: list[float]) -> kl.Kl:
    return kl.Kl("main", "none", FULL, depths, [kl.Point("run", "a.pt", 3, 9, values)])


def bound_of(depths: list[Any], gap: list[float], bounds: list[float]) -> bound.Bound:
    return bound.Bound("main", [bound.Network("run", 0.5, FULL, depths, gap, gap, bounds)])


def amplitude_of(depths: list[Any], norm: list[float]) -> amplitude.Amplitude:
    """With the main network first, as the analysis has it, and once more among the subnets."""
    ones = [1.0] * len(norm)
    return amplitude.Amplitude("main", [amplitude.Network("run", [FULL, *depths], ones, norm, ones, ones)])


RESULTS: dict[str, tuple[Any, list[object]]] = {
    "kl": (kl_of(DEPTHS, [0.5, 0.25, 0.0, 0.75]), ["0.5", "0.25", "0.75"]),
    "bound": (bound_of(DEPTHS, [0.1, -0.3, 0.9, 0.2], [0.2, 0.4, 1.0, 0.3]), ["0.500", "0.300", "0.400"]),
    "amplitude: greatest": (amplitude_of(DEPTHS, [9.0, 2.0, 3.0, 9.0, 4.0]), [9.0, 1.0, "2.00", "4.00"]),
    "amplitude: least": (amplitude_of(DEPTHS, [1.0, 2.0, 3.0, 1.0, 4.0]), [1.0, 1.0, "2.00", "4.00"]),
    "kl of none": (kl_of(ALONE, [0.0]), ["-", "-", "-"]),
    "bound of none": (bound_of(ALONE, [0.0], [0.0]), ["0.500", "-", "-"]),
    "amplitude of none": (amplitude_of(ALONE, [2.0, 2.0]), [2.0, 1.0, "-", "-"]),
}


@pytest.mark.parametrize("name", RESULTS)
def test_the_main_network_is_no_subnet(name: str) -> None:
    result, expected = RESULTS[name]
    (cells,) = result.rows().cells
    assert list(cells)[-len(expected) :] == expected


def test_the_pictures_range_is_the_tables() -> None:
    figure = new_figure()
    kl_of(DEPTHS, [0.5, 0.25, 0.0, 0.75]).draw(figure)
    (axes,) = figure.axes
    (segment,) = axes.collections[0].get_segments()
    assert [y for _, y in segment] == [0.25, 0.75]
    assert axes.lines[0].get_ydata().tolist() == [0.5]
    assert "3 subnets" in axes.get_title()
    kl_of(ALONE, [0.0]).draw(new_figure())  # nothing to draw is no error
