"""A report's curves and its subnets."""

from __future__ import annotations

from collections.abc import Sequence

from .drawing import Curve, Dots, colour, draw_curves, draw_dots
from .figures import Subnets, subnets
from .html import Markup, bullets, element, figure, folded, paragraph, table, text
from .reading import RunData

PANELS: tuple[tuple[str, str, str, tuple[tuple[str, str, str], ...]], ...] = (
    ("Loss", "loss", "loss", (("train", "loss", "training"), ("evaluation", "loss", "validation"))),
    (
        "Parts of the loss",
        "parts",
        "loss",
        (("train", "main_loss", "main network"), ("train", "subnet_loss", "subnets")),
    ),
    (
        "Top-1",
        "top1",
        "Top-1, %",
        (("train", "train_top1", "training"), ("evaluation", "top1", "validation")),
    ),
    ("Learning rate", "lr", "learning rate", (("train", "lr", ""),)),
    ("Speed", "speed", "images/s", (("train", "images_per_second", ""),)),
    ("Waiting for images", "wait", "share of the time", (("train", "data_wait", ""),)),
    ("Gradient norm", "norm", "L2 norm", (("train", "gradient_norm", ""),)),
    ("Power of the GPUs", "power", "watts", (("train", "gpu_watts", ""),)),
)
"""Title, identity, label, and the curves: kind and field of the records, and words if there are more."""

_WORDS = ("solid", "dashed", "dotted")


def curves(runs: Sequence[RunData]) -> list[Markup]:
    """A picture for each of `PANELS` of which something was recorded."""
    figures = [each for panel in PANELS if (each := _panel(runs, *panel))]
    if not figures:
        return [paragraph("Nothing was recorded yet.", "soft")]
    legend = [_legend(runs)] if len(runs) > 1 else []
    return [*legend, element("div", *figures, kind="figures")]


def _panel(
    runs: Sequence[RunData], title: str, identity: str, label: str, kinds: Sequence[tuple[str, str, str]]
) -> Markup | None:
    drawn = [
        Curve(points, index, kind)
        for index, run in enumerate(runs)
        for kind, (records, name, _) in enumerate(kinds)
        if (points := run.points(records, name)) and (name != "subnet_loss" or any(y for _, y in points))
    ]
    if not drawn:
        return None
    shown = sorted({curve.kind for curve in drawn})
    words = ", ".join(f"{kinds[kind][2]} {_WORDS[kind]}" for kind in shown if kinds[kind][2])
    names = ", ".join(runs[index].name for index in sorted({curve.run for curve in drawn}))
    alt = f"{title} over the steps of {names}. {_ends(drawn[0])}"
    return figure(draw_curves(drawn, identity, "step", label, alt), title, words)


def _ends(curve: Curve) -> str:
    (_, first), (step, last) = curve.points[0], curve.points[-1]
    return f"From {first:.4g} to {last:.4g} at step {step:,.0f}."


def _legend(runs: Sequence[RunData]) -> Markup:
    return bullets(
        [
            Markup(f'<span class="swatch" style="background: {colour(index)}"></span>{text(run.name)}')
            for index, run in enumerate(runs)
        ],
        kind="legend",
    )


def subnets_of(runs: Sequence[RunData]) -> list[Markup]:
    """Table, picture, and every subnet to be unfolded."""
    found = [(index, run, own) for index, run in enumerate(runs) for own in subnets(run)]
    if not found:
        return [paragraph("No subnets were evaluated (evaluation.subnets, or fasttrain evaluate).", "soft")]
    head = ["run", "batch-norm statistics", "subnets", "mean, %", "deviation", "best, %", "worst, %", "from"]
    rows = [
        (
            *(run.name, _whose(own), len(own.top1)),
            *(f"{own.mean:.2f}", f"{own.deviation:.2f}", _ranked(own, -1), _ranked(own, 0), own.source),
        )
        for _, run, own in found
    ]
    series = [
        Dots(
            [(sum(depths), top1) for depths, top1 in zip(own.depths, own.top1, strict=True)], index, own.main
        )
        for index, _, own in found
    ]
    alt = "; ".join(
        f"{run.name}: {len(own.top1)} subnets, Top-1 {own.ranked[0][0]:.1f} to {own.ranked[-1][0]:.1f} %"
        for _, run, own in found
    )
    picture = draw_dots(series, "subnets", "residual blocks that the subnet keeps", "Top-1, %", alt)
    words = "Every subnet on its own; dashed: the main network"
    legend = [_legend(runs)] if len(runs) > 1 else []
    shown = element("div", figure(picture, "Top-1 of the subnets", words), kind="figures")
    return [table(head, rows), *legend, shown, *(_every(run, own) for _, run, own in found)]


def _whose(own: Subnets) -> str:
    return {"reestimated": "their own", "main": "the main network's"}.get(own.statistics, own.statistics)


def _ranked(own: Subnets, place: int) -> str:
    top1, depths = own.ranked[place]
    return f"{top1:.2f} ({_depths(depths)})"


def _depths(depths: Sequence[int]) -> str:
    return "-".join(map(str, depths))


MOST = 500
"""Subnets that are listed one by one."""


def _every(run: RunData, own: Subnets) -> Markup:
    rows = [(_depths(depths), sum(depths), f"{top1:.2f}") for top1, depths in reversed(own.ranked)]
    title = f"{run.name}: each subnet, with {_whose(own)} statistics"
    if len(rows) > MOST:
        title += f" (the best {MOST} of {len(rows)})"
    return folded(title, table(["blocks per stage", "blocks", "Top-1, %"], rows[:MOST]))
