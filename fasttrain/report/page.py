"""A report's page, section by section."""

from __future__ import annotations

from collections.abc import Sequence

from .. import __version__
from ..telemetry.files import now
from ..telemetry.runs import when
from . import speed
from .columns import about, moment
from .curves import curves
from .figures import not_finite
from .html import Markup, bullets, document, element, paragraph, section, text
from .legend import swatch
from .reading import RunData
from .result import notes_on, result
from .settings import checkpoints, configuration, environment
from .subnets import subnets_of


def page(runs: Sequence[RunData]) -> str:
    """The page about runs, at least one; their names are made different where they are not."""
    _distinguish(runs)
    names = ", ".join(run.name for run in runs)
    parts = [
        element("h1", text(names if len(runs) == 1 else f"{len(runs)} runs")),
        bullets([_headline(index, run) for index, run in enumerate(runs)], kind="legend"),
        *_gaps(runs),
        section("Result", result(runs), *notes_on(runs)),
        section("Curves", *curves(runs)),
        section("Subnets", *subnets_of(runs)),
        section("Speed and energy", speed.speed_and_energy(runs), *speed.notes_on(runs)),
        section("Configuration", *configuration(runs)),
        section("Environment", environment(runs)),
        section("Checkpoints and starts", *checkpoints(runs)),
        paragraph(
            f"Written by fasttrain {__version__}, {moment(now())} UTC, from the runs' folders.", "soft"
        ),
    ]
    return document(f"fasttrain: {names}"[:200], parts)


def _distinguish(runs: Sequence[RunData]) -> None:
    names = [run.name for run in runs]
    for index, run in enumerate(runs):
        if names.count(run.name) > 1:
            run.name = f"{run.name} ({index + 1})"


def _headline(index: int, run: RunData) -> Markup:
    """Its colour, name and state; a state that is none of an end that was meant is marked."""
    words = _state(run)
    calm = run.state is not None and run.state.state in ("done", "running")
    return Markup(
        swatch(index)
        + element("b", text(run.name))
        + " "
        + element("span", text(words), kind="" if calm else "warn")
    )


def _state(run: RunData) -> str:
    """How it stands, in words."""
    state = run.state
    if state is None:
        return "of unknown state"
    words = {
        "running": "is still running: this is its state so far",
        "dead": "should be running, but its process is gone or silent",
        "unknown": "has not said how it stands",
    }.get(state.state, state.state)
    parts = [words, f"epoch {state.epoch} of {state.epochs or '?'}", f"step {state.step:,}"]
    if state.eta_seconds is not None:
        parts.append(f"ends {when(state)}")
    return ", ".join(parts)


def _gaps(runs: Sequence[RunData]) -> list[Markup]:
    lines = []
    for run in runs:
        words = list(run.gaps)
        if count := not_finite(run):
            reports = len(run.of("train"))
            words.append(f"the loss was not finite in {count} of {reports} reports, which the curves lack")
        if run.status.get("message"):
            words.append(f"ended with status {run.status.get('exit_status')}: {run.status['message']}")
        lines += [text(about(run, runs, each)) for each in words]
    return [bullets(lines, kind="warn")] if lines else []
