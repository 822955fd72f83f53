"""The loafing plot: how well each subnet does on its own (ST Figure 1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigError
from ..evaluation import SubnetReport


def plot_subnets(reports: Mapping[str, SubnetReport], main: Mapping[str, float], path: Path) -> None:
    """Draw Top-1 of each subnet over the blocks it keeps, one colour per training method, as a PNG.

    Args:
        reports: method's name to its subnets.
        main: method's name to its main network's Top-1, percent.
        path: of the picture.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the plot needs matplotlib: pip install 'fasttrain[report]'") from None
    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (name, report) in enumerate(reports.items()):
        colour = f"C{index}"
        offset = 0.12 * (index - (len(reports) - 1) / 2)
        blocks = [sum(depths) + offset for depths in report.depths]
        label = f"{name}: {report.mean:.1f} ± {report.deviation:.1f} %, worst {report.worst:.1f} %"
        axes.scatter(blocks, report.top1, s=26, color=colour, alpha=0.75, label=label)
        axes.axhline(
            main[name],
            color=colour,
            linewidth=1,
            linestyle="--",
            label=f"{name}: main network {main[name]:.1f} %",
        )
    axes.set_xlabel("residual blocks that the subnet keeps")
    axes.set_ylabel("Top-1 on the test images, %")
    axes.set_title("Every subnet on its own, batch-norm statistics re-estimated for each")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)
