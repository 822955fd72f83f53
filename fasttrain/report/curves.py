"""What a run recorded while it trained, over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .drawing import Curve, draw_curves
from .html import Markup, element, figure, paragraph
from .legend import legend
from .reading import RunData


class Panel(NamedTuple):
    """One picture.

    Attributes:
        title: above it.
        identity: of the picture in the page.
        label: of the vertical axis.
        curves: kind and field of the records, and words if there are more.
        from_zero: whether the vertical axis begins there, so that small changes look small.
    """

    title: str
    identity: str
    label: str
    curves: tuple[tuple[str, str, str], ...]
    from_zero: bool = False


PANELS = (
    Panel("Loss", "loss", "loss", (("train", "loss", "training"), ("evaluation", "loss", "validation"))),
    Panel(
        "Parts of the loss",
        "parts",
        "loss",
        (("train", "main_loss", "main network"), ("train", "subnet_loss", "subnets")),
    ),
    Panel(
        "Top-1",
        "top1",
        "Top-1, %",
        (("train", "train_top1", "training"), ("evaluation", "top1", "validation")),
    ),
    Panel("Learning rate", "lr", "learning rate", (("train", "lr", ""),), True),
    Panel("Speed", "speed", "images/s", (("train", "images_per_second", ""),), True),
    Panel("Waiting for images", "wait", "share of the time", (("train", "data_wait", ""),), True),
    Panel("Gradient norm", "norm", "L2 norm", (("train", "gradient_norm", ""),), True),
    Panel("Power of the GPUs", "power", "watts", (("train", "gpu_watts", ""),), True),
)

_WORDS = ("solid", "dashed", "dotted")


def curves(runs: Sequence[RunData]) -> list[Markup]:
    """A picture for each of `PANELS` of which something was recorded."""
    figures = [each for panel in PANELS if (each := _draw(runs, panel))]
    if not figures:
        return [paragraph("Nothing was recorded yet.", "soft")]
    return [*legend(runs), element("div", *figures, kind="figures")]


def _draw(runs: Sequence[RunData], panel: Panel) -> Markup | None:
    """A panel's picture; None where no run has any of its curves."""
    drawn = [
        Curve(points, index, kind)
        for index, run in enumerate(runs)
        for kind, (records, name, _) in enumerate(panel.curves)
        if (points := run.points(records, name)) and (name != "subnet_loss" or any(y for _, y in points))
    ]
    if not drawn:
        return None
    named = [(kind, words) for kind, (_, _, words) in enumerate(panel.curves) if words]
    shown = {curve.kind for curve in drawn}
    words = ", ".join(f"{words} {_WORDS[kind]}" for kind, words in named if kind in shown)
    names = ", ".join(runs[index].name for index in sorted({curve.run for curve in drawn}))
    alt = f"{panel.title} over the steps of {names}. {_ends(drawn[0])}"
    picture = draw_curves(drawn, panel.identity, panel.label, alt, from_zero=panel.from_zero)
    return figure(picture, panel.title, words)


def _ends(curve: Curve) -> str:
    (_, first), (step, last) = curve.points[0], curve.points[-1]
    return f"From {first:.4g} to {last:.4g} at step {step:,.0f}."
