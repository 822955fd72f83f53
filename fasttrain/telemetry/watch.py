"""`fasttrain watch`: a run's curves in a terminal, while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from .curves import COLOURS, Points, plot
from .records import Record, Records
from .runs import RunState, is_run, judge, when
from .words import printable

SECONDS = 1.0
"""Between two looks."""

PANELS = {
    "loss": (("train", "loss", "training"), ("evaluation", "loss", "validation")),
    "Top-1, %": (("train", "train_top1", "training"), ("evaluation", "top1", "validation")),
    "images/s": (("train", "images_per_second", ""),),
    "learning rate": (("train", "lr", ""),),
}
"""Title to its curves: kind and field of the records, and words if there are more."""


def watch(folder: Path, *, once: bool = False) -> None:
    """Show a run until it ends or Ctrl-C; one frame alone if asked for, or where there is no terminal.

    Raises:
        ConfigError: no run's folder.
    """
    if not is_run(folder):
        raise ConfigError(f"RUN is {folder}; allowed: a run's folder, such as runs/demo")
    run, console = View(folder), Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=100, height=32, highlight=False)
    if console.is_terminal and not once:
        with suppress(KeyboardInterrupt):
            _follow(run, console)
    console.print(run.frame(console.width, console.height))


def _follow(run: View, console: Console) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(run.frame(console.width, console.height), refresh=True)
            if run.ended:
                return
            time.sleep(SECONDS)


class View:
    """A run's curves, as far as they are written."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self.folder = folder
        self.records = Records(folder / "metrics.jsonl")
        self.ended = False

    def frame(self, width: int, height: int) -> RenderableType:
        """Read on; how the run stands, in characters."""
        self.records.read()
        training = self.records.of("train")
        last = training[-1] if training else {}
        state = judge(self.folder, self.folder.name, self.records.of("evaluation"), last)
        self.ended = state.state != "running"
        columns = 2 if width >= 72 else 1
        each = width // columns
        rows = max(5, (height - 3) * columns // len(PANELS))
        panels = [
            _panel(title, [self._points(kind, field) for kind, field, _ in curves], each, rows)
            for title, curves in PANELS.items()
        ]
        grid = Table.grid()
        for first in range(0, len(panels), columns):
            grid.add_row(*panels[first : first + columns])
        return Group(_headline(state, last, width), grid)

    def _points(self, kind: str, field: str) -> Points:
        return [
            (record["global_step"], record[field])
            for record in self.records.of(kind)
            if record.get(field) is not None and "global_step" in record
        ]


def _headline(run: RunState, last: Record, width: int) -> Text:
    parts = [f"epoch {run.epoch}/{run.epochs or '?'}, step {run.step:,}"]
    if "loss" in last:
        parts.append("loss not finite" if last["loss"] is None else f"loss {last['loss']:.4f}")
    if run.top1 is not None:
        parts.append(f"best Top-1 {run.top1:.2f} %")
    if run.images_per_second is not None:
        parts.append(f"{run.images_per_second:,.0f} images/s")
    if run.eta_seconds is not None:
        parts.append(f"ends {when(run)}")
    line = Text.assemble((printable(run.name), "bold"), f" {printable(run.state)}: ", ", ".join(parts))
    line.truncate(width, overflow="ellipsis")
    return line


def _panel(title: str, curves: Sequence[Points], width: int, height: int) -> Panel:
    words = Text(title)
    for (_, _, name), colour in zip(PANELS[title], COLOURS, strict=False):
        words.append(f" {name}" if name else "", colour)
    return Panel(plot(curves, width - 4, height - 2), title=words, width=width, height=height)
