"""What a run has come to: accuracy, against what its recipe states as published."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .columns import Value, about, by_run, shown
from .figures import Accuracy, Subnets, accuracy, subnets
from .html import MISSING, Markup, paragraph
from .reading import RunData


def result(runs: Sequence[RunData]) -> Markup:
    """The table."""

    def of(pick: Callable[[Accuracy], str]) -> Value:
        return lambda run: pick(accuracy(run))

    def of_subnets(pick: Callable[[Subnets], str]) -> Value:
        return lambda run: "; ".join(_told(pick(own), own, subnets(run)) for own in subnets(run)) or MISSING

    return by_run(
        runs,
        [
            ("recipe", lambda run: run.config.get("recipe") or MISSING),
            ("network", lambda run: run.config.get("model.name", MISSING)),
            ("training", _method),
            ("last Top-1, %", of(lambda own: shown(own.top1))),
            ("published for the recipe, Top-1, %", of(lambda own: shown(own.published, "{:g}"))),
            ("difference, points", of(_difference)),
            ("best Top-1, %", of(_best)),
            ("last Top-5, %", of(lambda own: shown(own.top5))),
            ("validation loss", of(lambda own: shown(own.loss, "{:.4f}"))),
            ("validation images", of(lambda own: shown(own.images, "{:,.0f}"))),
            ("subnets, mean Top-1, %", of_subnets(lambda own: f"{own.mean:.2f} ± {own.deviation:.2f}")),
            ("worst subnet, Top-1, %", of_subnets(lambda own: f"{own.ranked[0][0]:.2f}")),
        ],
    )


def _told(words: str, own: Subnets, every: Sequence[Subnets]) -> str:
    """With whose batch-norm statistics, where the subnets were evaluated with several."""
    return words if len(every) == 1 else f"{words} with {own.whose} statistics"


def _method(run: RunData) -> str:
    name = run.config.get("method.name")
    if name == "stimulative":
        count, inputs = run.config.get("method.subnets"), run.config.get("method.subnet_inputs")
        return f"stimulative, {count} subnet{'' if count == 1 else 's'} per step, {inputs} inputs"
    if name == "augsub":
        return f"augsub, {run.config.get('method.drop')} at ratio {run.config.get('method.drop_ratio')}"
    return str(name or MISSING)


def _difference(own: Accuracy) -> str:
    known = own.top1 is not None and own.published is not None
    return f"{own.top1 - own.published:+.2f}" if known else MISSING  # type: ignore[operator]


def _best(own: Accuracy) -> str:
    epoch = "" if own.best_epoch is None else f" (epoch {own.best_epoch:.0f})"
    return MISSING if own.best is None else f"{own.best:.2f}{epoch}"


def notes_on(runs: Sequence[RunData]) -> list[Markup]:
    """What to know of the table."""
    notes = []
    for run in runs:
        own = accuracy(run)
        if own.top1 is None:
            notes.append(about(run, runs, "no evaluation was recorded."))
        if own.published is not None and run.deciding:
            words = f"its settings are not the recipe's ({', '.join(run.deciding)}), so that the published "
            notes.append(about(run, runs, f"{words}figure is no target for it."))
        if own.published is not None and not (run.state and run.state.state == "done"):
            notes.append(
                about(run, runs, "the run is not at its end, where the published figure was reached.")
            )
    if all(accuracy(run).published is None for run in runs):
        notes.append(
            "The papers publish no figure for " + ("this recipe." if len(runs) == 1 else "these recipes.")
        )
    return [paragraph(note, "soft") for note in notes]
