"""When and how a run's state is kept, and how the run is taken up again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .. import checkpoint, distributed
from ..config import Config
from ..distributed import Process
from ..errors import CheckpointError, ConfigError
from ..telemetry.folder import RunFolder
from .archive import Archive, Found
from .state import State
from .writer import Writer


def find_checkpoint(config: Config, folder: RunFolder, archive: Archive) -> Found | None:
    """What a run starts from, as `run.resume` says.

    Raises:
        ConfigError: the folder is not to be entered.
        CheckpointError: none of the checkpoints is sound.
    """
    resume = config.run.resume
    if resume == "never" and os.path.lexists(folder.path):
        raise ConfigError(
            f"{folder.path} exists and run.resume is 'never'; allowed: --run.resume auto to go on with it, "
            "or another --run.name"
        )
    found = archive.newest()
    if found is None and resume not in ("auto", "never"):
        if not os.path.isfile(resume):
            raise CheckpointError(
                f"no checkpoint at {resume}; run.resume allows auto, never, or a checkpoint's file"
            )
        found = Found(Path(resume), checkpoint.read(Path(resume)))
    return found


class Keeper:
    """Saves a run's state in the background and restores it; all processes call the same methods together."""

    def __init__(self, config: Config, process: Process, state: State, folder: RunFolder) -> None:
        """Nothing is read or written yet."""
        self.config, self.process, self.state, self.folder = config, process, state, folder
        self.archive = Archive(folder.checkpoints, config.run.keep)
        self.writer = Writer()
        self.say: Callable[[str], None] = print
        self._saved = self._mark()
        self._saved_at = time.monotonic()
        self._best_before = state.progress.best
        self._damaged: list[Path] = []

    def _mark(self) -> tuple[int, int]:
        """What distinguishes one checkpoint from the next."""
        return self.state.progress.position.global_step, self.state.progress.evaluated

    def restore(self) -> list[str]:
        """Stand where the newest sound checkpoint stood, if there is one; notes for the log.

        Raises:
            ConfigError: the folder is another process's, or not to be entered, or other settings.
            CheckpointError: none of the checkpoints is sound, or it does not fit.
        """
        notes: list[str] = []
        path = Path()

        def find() -> bytes:
            nonlocal path
            self.folder.take()
            found = find_checkpoint(self.config, self.folder, self.archive)
            if found is None:
                return b""
            notes.extend(found.warnings)
            before = self.folder.moved()
            if before:
                notes.append(f"the run lay in {before} before; it goes on in {self.folder.path}")
            self._damaged = found.damaged
            path = found.path
            return found.content

        content = distributed.from_main(find, self.process)
        if content:
            path = Path(os.fsdecode(distributed.from_main(lambda: os.fsencode(path), self.process)))
            self.state.restore(checkpoint.decode(content, path), path)
            notes.append(f"resumed from {path} at step {self._mark()[0]}")
        self._saved = self._mark()
        return notes

    def is_over(self) -> bool:
        """Whether the run in the folder came to its end, its subnets' evaluation included."""
        return bool(distributed.from_main(lambda: b"y" if self.folder.is_done else b"", self.process))

    def open(self) -> list[str]:
        """Make the run folder ready to be gone on with: what is not of the restored state goes; notes for the
        log of the main process.

        Raises:
            ConfigError: it cannot be written.
        """
        notes: list[str] = []

        def prepare() -> bytes:
            done = self.folder.is_done
            self.folder.create(self.config)
            self.archive.put_by(self._damaged)
            notes.extend(self.archive.clean())
            step, evaluated = self._mark()
            kinds = {"evaluation": evaluated, "subnets": step if done else step - 1}
            self.folder.drop_records_after(step, kinds)
            return b""

        distributed.from_main(prepare, self.process)
        return notes

    @property
    def is_due(self) -> bool:
        """Whether the clock tells to save, and nothing is being written."""
        minutes = self.config.run.save_minutes
        return bool(minutes) and time.monotonic() - self._saved_at > 60 * minutes and self.writer.idle

    def save(self) -> None:
        """Take a snapshot and let it be written; the best so far, if it was evaluated and is.

        Raises:
            NonFiniteError: the last step was not finite: nothing is saved.
        """
        self.state.step.check.settle()
        if self.process.is_main:
            self.writer.wait()
            self.warn()
        progress = self.state.progress
        self._best_before, better = progress.best, False
        if progress.main is not None and progress.evaluated == progress.position.global_step:
            better = progress.main.top1 > progress.best
            progress.best = max(progress.best, progress.main.top1)
        captured = self.state.capture()
        if self.process.is_main:
            step, about = progress.position.global_step, self.state.about()
            self.writer.submit(partial(self.archive.save, step, captured, about, best=better))
        self._saved, self._saved_at = self._mark(), time.monotonic()

    def save_rest(self) -> None:
        """Save what is not saved yet, and wait for it.

        Raises:
            CheckpointError: it cannot be written, on all processes.
        """

        def unsaved() -> bytes:
            self.writer.wait()
            self.warn()
            return b"y" if self._saved != self._mark() else b""

        if distributed.from_main(unsaved, self.process):
            self.save()
            self.settle()

    def warn(self) -> None:
        """Say that a checkpoint could not be written, once; on the main process."""
        failure = self.writer.failure()
        if failure is not None:
            self.say(f"warning: {failure}; older checkpoints are untouched, the next save tries again")
            self._saved, self.state.progress.best = (-1, -1), self._best_before

    def settle(self) -> None:
        """Wait for the last checkpoint to be written.

        Raises:
            CheckpointError: it could not be, on all processes.
        """

        def settled() -> bytes:
            self.writer.wait()
            failure = self.writer.failure()
            if failure is not None:
                raise CheckpointError(str(failure))
            return b""

        distributed.from_main(settled, self.process)
