"""The plots that `python -m bench report` draws beside the files of bench/results, as PNG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fasttrain.errors import ConfigError

from .rows import read
from .summary import by_mode, mean

METRICS = ("main", "subnets_mean", "subnets_deviation", "subnets_worst")
"""Of the accuracy study, in the order of its table."""


@contextmanager
def axes(path: Path, width: float, height: float, panels: int = 1) -> Iterator[Any]:
    """Axes to draw on, or an array of them side by side; the picture is written at the end.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'fasttrain[report]'") from None
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure.subplots(1, panels)
    figure.savefig(path, metadata={"Software": None})  # the same bytes whoever draws them


def step_plot(folder: Path, path: Path) -> None:
    """Seconds and FLOPs of each mode in multiples of a plain step."""
    values = by_mode(read(folder / "step.csv"))
    modes = list(values)[::-1]
    with axes(path, 7.5, 0.8 + 0.36 * len(modes)) as ax:
        for metric, offset, label in (("seconds", 0.19, "seconds"), ("flops", -0.19, "FLOPs")):
            plain = mean(values, "ct", metric)
            ratios = [(mean(values, mode, metric) or 0.0) / plain if plain else 0.0 for mode in modes]
            bars = ax.barh([place + offset for place in range(len(modes))], ratios, 0.38, label=label)
            ax.bar_label(bars, [f"{ratio:.2f}" if ratio else "" for ratio in ratios], padding=2, fontsize=8)
        ax.set_yticks(range(len(modes)), modes)
        ax.set_xlabel("plain training steps")
        ax.legend(loc="lower right")
        ax.margins(x=0.08)


Study = dict[str, dict[str, list[float]]]
"""Method to metric to one value per seed."""


def studies(folder: Path) -> dict[str, Study]:
    """The accuracy studies of a device, each under what it trained."""
    groups: dict[str, Study] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in read(folder / "study.csv"):
        title = f"{row['model']}, {row['images']} images of {row['crop']} px, {row['epochs']} epochs"
        groups[title][row["method"]][row["metric"]].append(float(row["value"]))
    return groups


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, percent."""
    return f"{fmean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def study_plot(folder: Path, path: Path) -> None:
    """Main network and subnets of each method of the largest study, one point per seed."""
    title, study = max(
        studies(folder).items(), key=lambda item: sum(len(own["main"]) for own in item[1].values())
    )
    with axes(path, 7.5, 4.2) as ax:
        for metric, marker, label in (
            ("main", "o", "main network"),
            ("subnets_mean", "s", "mean over all subnets"),
            ("subnets_worst", "v", "worst subnet"),
        ):
            points = [(place, value) for place, own in enumerate(study.values()) for value in own[metric]]
            ax.scatter(*zip(*points, strict=True), marker=marker, alpha=0.7, label=label)
        ax.set_xticks(range(len(study)), list(study))
        ax.set_ylabel("Top-1 on the test images, %")
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)


PLOTS: dict[str, Callable[[Path, Path], None]] = {"step": step_plot, "study": study_plot}
"""Name of a plot, which is its CSV file's too, to what draws it from a device's folder of results."""
