"""What a run was told to do, where it ran, and what it left: configuration, environment, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .columns import about, by_run, moment, shown
from .html import MISSING, Markup, folded, paragraph, table
from .reading import RunData


def configuration(runs: Sequence[RunData]) -> list[Markup]:
    """What differs between the runs, and from their recipes; all fields to be unfolded."""
    if not any(run.config for run in runs):
        return [paragraph("No configuration can be read.", "soft")]
    fields = list(dict.fromkeys(name for run in runs for name in run.config))
    rows = [(name, *(_setting(run, name) for run in runs)) for name in fields]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    head = ["field", *(run.name for run in runs)]
    parts = []
    if len(runs) > 1:
        parts.append(
            table(head, differing, "What differs between the runs")
            if differing
            else paragraph("The runs' settings are equal.")
        )
    parts += [paragraph(about(run, runs, _against_recipe(run))) for run in runs]
    return [*parts, folded("All fields", table(head, rows))]


def _against_recipe(run: RunData) -> str:
    name = run.config.get("recipe")
    if run.changed is None:
        return f"the recipe {name} is not known here." if name else "of no recipe."
    if not run.changed:
        return f"the recipe {name} as it is."
    values = ", ".join(f"{each} = {_setting(run, each)}" for each in run.changed)
    return f"the recipe {name}, but {values}."


def _setting(run: RunData, name: str) -> str:
    value = run.config.get(name, MISSING)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "(empty)" if value == "" else str(value)


def environment(runs: Sequence[RunData]) -> Markup:
    """Versions, machine, variables."""

    def cell(run: RunData, name: str) -> str:
        value: Any = run.environment.get(name)
        if isinstance(value, dict):
            return ", ".join(f"{key}={each}" for key, each in value.items()) or MISSING
        if isinstance(value, list):
            return ", ".join(map(str, value)) or "none"
        return MISSING if value in (None, "") else str(value)

    names = dict.fromkeys(name for run in runs for name in run.environment)
    if not names:
        return paragraph("No environment can be read.", "soft")
    return by_run(runs, [(name, lambda run, name=name: cell(run, name)) for name in names])  # type: ignore[misc]


def checkpoints(runs: Sequence[RunData]) -> list[Markup]:
    """Of each run, its resumes, and how it ended."""
    parts = []
    for run in runs:
        rows = [
            (
                each.name,
                shown(each.step, "{:,}"),
                shown(each.epoch, "{:,}"),
                MISSING if each.bytes is None else f"{each.bytes / 1e6:,.1f}",
                each.sha256[:16] or MISSING,
            )
            for each in run.checkpoints
        ]
        head = ["file", "step", "epochs done", "MB", "SHA-256 begins"]
        if rows:
            parts.append(table(head, rows, about(run, runs, "checkpoints")))
        else:
            parts.append(paragraph(about(run, runs, "no complete checkpoint.")))
        parts.append(paragraph(about(run, runs, _ending(run))))
    return parts


def _ending(run: RunData) -> str:
    starts = [f"at step {each.step:,} ({moment(each.time)} UTC)" for each in run.starts]
    words = f"resumed {', '.join(starts)}." if starts else "never resumed."
    status = run.status.get("exit_status")
    if status is not None:
        ended = moment(run.status.get("time"))
        words += f" Ended with status {status} ({run.status.get('state')}) at {ended} UTC."
    elif run.state is not None:
        words += f" It has not ended: {run.state.state}."
    return words
