"""How fast a run was, and what energy it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .columns import Value, about, by_run, percent, shown, time
from .figures import Energy, Speed, energy, speed
from .html import MISSING, Markup, paragraph
from .reading import RunData


def speed_and_energy(runs: Sequence[RunData]) -> Markup:
    """The table."""

    def of(pick: Callable[[Speed], str]) -> Value:
        return lambda run: pick(speed(run))

    def of_energy(pick: Callable[[Energy], str]) -> Value:
        return lambda run: MISSING if (own := energy(run)) is None else pick(own)

    return by_run(
        runs,
        [
            ("images/s", of(lambda own: shown(own.rate, "{:,.1f}"))),
            ("images/s per process", of(lambda own: shown(own.per_process, "{:,.1f}"))),
            ("step, median, ms", of(lambda own: shown(own.step_p50, "{:,.1f}"))),
            ("step, 95th percentile, worst report, ms", of(lambda own: shown(own.step_p95, "{:,.1f}"))),
            ("waiting for images, %", of(lambda own: percent(own.wait))),
            ("the same, worst report, %", of(lambda own: percent(own.worst_wait))),
            ("training images", of(lambda own: shown(own.images, "{:,.0f}"))),
            ("training time, evaluations left out", of(lambda own: time(own.seconds))),
            ("GFLOPs per image that ran", of(lambda own: shown(own.gflops, "{:,.3g}"))),
            ("MFU, %", of(lambda own: percent(own.mfu))),
            ("energy, J per image", of_energy(lambda own: f"{own.joules_per_image:.3f}")),
            ("energy, kWh", of_energy(lambda own: f"{own.kwh:.3g}")),
            ("power of all GPUs, mean, W", of_energy(lambda own: f"{own.watts:,.0f}")),
            ("GPU utilisation, mean, %", of_energy(lambda own: shown(own.utilisation, "{:.0f}"))),
            ("GPU memory, fullest, GiB", of_energy(lambda own: shown(own.memory_gib, "{:.1f}"))),
            ("GPU temperature, hottest, °C", of_energy(lambda own: shown(own.celsius, "{:.0f}"))),
        ],
    )


def notes_on(runs: Sequence[RunData]) -> list[Markup]:
    """Whose energy it is, or why there is none."""
    notes = []
    for run in runs:
        own = energy(run)
        if own is None:
            why = str(run.environment.get("nvml", "")) or "no GPU reported its power"
            notes.append(about(run, runs, f"no energy was measured ({why})."))
        else:
            known = f"known in {100 * own.share:.0f} % of the time."
            notes.append(about(run, runs, f"energy of the GPU boards alone, {known}"))
    return [paragraph(note, "soft") for note in notes]
