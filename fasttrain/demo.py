"""The demo: ResNet-20 on handwritten digits by common training and by ST++, and all its subnets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .analysis.loafing import Series, draw_loafing
from .analysis.output import beside, finish, new_figure
from .recipes import recipe
from .telemetry.files import write_json
from .trainer import Summary, train

METHODS = {"CT": "demo-ct", "ST++": "demo"}


def run_demo(folder: Path) -> None:
    """Train both ways, print the comparison, and write `comparison.json` and `subnets.png`.

    Args:
        folder: holds the two run folders; a number is added where it is taken.
    """
    folder = _free(folder)
    summaries = {}
    for method, name in METHODS.items():
        config = recipe(name)
        config = replace(config, run=replace(config.run, folder=str(folder), name=name))
        summaries[method] = train(config)
    _write(summaries, folder)
    _print(summaries)
    Console(soft_wrap=True, highlight=False).print(f"plot: {folder / 'subnets.png'}")


def _free(folder: Path) -> Path:
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _write(summaries: dict[str, Summary], folder: Path) -> None:
    main = {method: summary.main.top1 for method, summary in summaries.items() if summary.main}
    reports = {method: summary.subnets[0] for method, summary in summaries.items()}
    rows = {
        method: {
            "main": main[method],
            **reports[method].summary(),
            "images_per_second": summary.images_per_second,
        }
        for method, summary in summaries.items()
    }
    write_json(folder / "comparison.json", rows)
    series = [
        Series(
            label=method,
            main=main[method],
            top1=report.top1,
            mean=report.mean,
            deviation=report.deviation,
            x=beside([sum(depths) for depths in report.depths], index, len(reports)),
        )
        for index, (method, report) in enumerate(reports.items())
    ]
    figure = new_figure()
    axes = figure.add_subplot()
    title = "Every subnet on its own, batch-norm statistics re-estimated for each"
    draw_loafing(axes, series)
    finish(axes, title=title, x="residual blocks that the subnet keeps")
    figure.savefig(folder / "subnets.png")


def _print(summaries: dict[str, Summary]) -> None:
    table = Table(title="Handwritten digits, ResNet-20: Top-1 on the test images, %")
    for column in ("training", "main network", "subnets: mean", "deviation", "worst", "images/s"):
        table.add_column(column, justify="left" if column == "training" else "right")
    for method, summary in summaries.items():
        report = summary.subnets[0]
        assert summary.main is not None
        table.add_row(
            method,
            f"{summary.main.top1:.2f}",
            f"{report.mean:.2f}",
            f"{report.deviation:.2f}",
            f"{report.worst:.2f}",
            f"{summary.images_per_second:.0f}",
        )
    Console(width=None if Console().is_terminal else 100).print(table)
