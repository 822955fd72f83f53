"""What a run prints: lines to console and log.txt, and on a terminal a progress bar."""

from __future__ import annotations

import sys
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..errors import encodable
from ..streams import discard
from .files import append_line, now
from .folder import RunFolder


class _Output(Console):
    """A console whose reader may go away, as `| head` or a lost ssh does: no run ends by that."""

    def on_broken_pipe(self) -> None:
        """Print no more; log.txt keeps the lines."""
        self.quiet = True
        discard(sys.stdout)


class Log:
    """Lines to console and log.txt, and on a terminal a progress bar; silent on other ranks than 0."""

    def __init__(self, folder: RunFolder | None) -> None:
        """`folder` is None on ranks that stay silent."""
        self.folder = folder
        self.console = _Output(quiet=folder is None, highlight=False, soft_wrap=True)
        self.progress: Progress | None = None
        self.text = ""

    def line(self, text: str) -> None:
        """Print and keep one line."""
        text = encodable(text)
        try:
            self.console.print(text, markup=False)
        except OSError as error:  # a full disk, as that of a batch job's output, ends no run
            self.console.quiet = True
            with suppress(OSError):
                discard(sys.stdout)
            self._keep(f"warning: the output ends before the next line: {error}")
        self._keep(text)

    def _keep(self, text: str) -> None:
        if self.folder is None:
            return
        try:
            append_line(self.folder.path / "log.txt", f"{now()} {text}")
        except OSError as error:  # a full disk ends no run
            self.console.print(f"warning: log.txt lacks a line: {error}", markup=False)

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Show a bar for one epoch, if this is a terminal; beside it the last metrics."""
        if self.console.is_terminal and not self.console.quiet:
            self.progress = Progress(
                TextColumn("epoch {task.fields[epoch]}", markup=False),
                BarColumn(bar_width=10),
                TextColumn("{task.completed}/{task.total} {task.fields[text]}", markup=False),
                console=self.console,
                transient=True,
            )
            self.progress.add_task(
                "", total=steps, completed=done, epoch=f"{epoch + 1}/{epochs}", text=self.text
            )
            self.progress.start()

    def advance(self) -> None:
        """One step done."""
        if self.progress is not None:
            self.progress.advance(self.progress.task_ids[0])

    def metrics(self, text: str, short: str) -> None:
        """Current metrics: in short beside the bar on a terminal, else a line; log.txt keeps the line."""
        self.text = short
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], text=short)
            self._keep(text)
        else:
            self.line(text)

    def end_epoch(self) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
