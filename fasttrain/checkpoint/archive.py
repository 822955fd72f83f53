"""The checkpoints of one run: which there are, the newest that is sound, and which are kept.

`step-00001234.pt` is complete once `step-00001234.json` is there; without it, it is put by under the name
`step-00001234.pt.without-manifest`. `best.pt` is a link to the file of its step. `last.safetensors` and
`best.safetensors`: the weights alone, as evaluation judges them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import checkpoint
from ..checkpoint import manifest_of
from ..errors import CheckpointError

_UNSURE = ".without-manifest"
"""After the name of a checkpoint that was put by since its writing did not come to its end."""
_NAME = re.compile(rf"step-([0-9]{{8,}})(-before)?\.pt(?:{re.escape(_UNSURE)})?")
"""Of the checkpoints written here; any other file is somebody else's, and is left alone."""


def _age(path: Path) -> tuple[int, bool]:
    """Sorts the checkpoints, oldest first."""
    name = _NAME.fullmatch(path.name)
    assert name is not None
    return int(name[1]), name[2] is None


@dataclass(frozen=True, slots=True)
class Found:
    """The newest sound checkpoint: where it is, its content, what was wrong with newer ones, and these."""

    path: Path
    content: bytes
    warnings: list[str] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)


class Archive:
    """A folder of checkpoints; one process writes it."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        """Name the folder; nothing is read or written yet.

        Args:
            folder: `checkpoints` in a run's folder.
            keep: how many of the newest stay.
        """
        self.folder, self.keep = folder, keep

    @property
    def best(self) -> Path:
        """The checkpoint of the best evaluation."""
        return self.folder / "best.pt"

    def complete(self) -> list[Path]:
        """The checkpoints whose writing came to its end, newest first."""
        return [path for path in self._all() if manifest_of(path).exists()]

    def unsure(self) -> list[Path]:
        """The checkpoints without a manifest, newest first: their writing did not come to its end."""
        return [path for path in self._all() if not manifest_of(path).exists()]

    def _all(self, suffix: str = ".pt") -> list[Path]:
        """Those too whose writing did not come to its end, newest first."""
        if not os.path.isdir(self.folder):  # unlike Path.is_dir, never raises
            return []
        named = [path for path in self.folder.glob(f"step-*{suffix}") if _NAME.fullmatch(path.name)]
        return sorted(named, key=_age, reverse=True)

    def newest(self) -> Found | None:
        """The newest checkpoint that is what was written; None where none is complete.

        Raises:
            CheckpointError: all of them are damaged.
        """
        warnings: list[str] = []
        damaged: list[Path] = []
        for path in self.complete():
            try:
                content = checkpoint.read(path)
                checkpoint.decode(content, path)
                return Found(path, content, warnings, damaged)
            except CheckpointError as error:
                damaged.append(path)
                warnings.append(f"warning: {error}; the checkpoint before it is taken")
        if warnings:
            raise CheckpointError(
                f"no checkpoint of the {len(warnings)} in {self.folder} can be read, so nothing was started: "
                f"{warnings[0].removeprefix('warning: ').partition(';')[0]}; --run.name starts another run"
            )
        return None

    def chosen(self, name: str) -> Path:
        """The file of `best` or `last`: where there is no best yet, the last.

        Raises:
            CheckpointError: there is neither.
        """
        if name == "best" and os.path.exists(self.best):  # unlike Path.exists, never raises
            return self.best
        for path in self.complete():
            return path
        told = f"no checkpoint in {self.folder}"
        unsure = [*self.unsure(), *self._all(f".pt{_UNSURE}")]
        if unsure:
            told += (
                f"; {unsure[0].name} has no manifest; allowed: the file's own path, to take it nevertheless"
            )
        raise CheckpointError(told)

    def save(self, step: int, state: dict[str, Any], about: Mapping[str, Any], *, best: bool) -> None:
        """Write the checkpoint of a step, its manifest last, and remove what is too old.

        Args:
            step: the global step.
            state: as a training checkpoint holds it.
            about: what else the manifest says.
            best: whether it is the best so far.

        Raises:
            CheckpointError: something could not be written; older checkpoints are as they were.
        """
        path = self.folder / f"step-{step:08}.pt"
        self._set_aside(path)
        try:
            written = checkpoint.save(path, state)
            if best:
                self._save_best(path, written, about)
            self._save_weights("last", state)
            if best:
                self._save_weights("best", state)
            checkpoint.save_manifest(path, written, about)
        except CheckpointError:
            if not manifest_of(path).exists():  # it is none, and would take room on a disk that is full
                with suppress(OSError):
                    path.unlink()
            raise
        self._remove_old()

    def _set_aside(self, path: Path) -> None:
        """A complete checkpoint of the same step, saved before its evaluation, stays until the new one is."""
        if manifest_of(path).exists():
            aside = path.with_name(f"{path.stem}-before.pt")
            with suppress(OSError):
                aside.unlink(missing_ok=True)
                _link(path, aside)
                os.replace(manifest_of(path), manifest_of(aside))

    def _save_best(self, path: Path, written: checkpoint.Written, about: Mapping[str, Any]) -> None:
        try:
            temporary = self.folder / f".best.pt.{os.getpid()}.tmp"
            _link(path, temporary)
            manifest_of(self.best).unlink(missing_ok=True)
            os.replace(temporary, self.best)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(f"cannot write {self.best}: {error.strerror}") from None
        checkpoint.save_manifest(self.best, written, about)

    def _save_weights(self, name: str, state: Mapping[str, Any]) -> None:
        from safetensors.torch import save

        weights = {key: value.contiguous() for key, value in checkpoint.judged_weights(state).items()}
        path = self.folder / f"{name}.safetensors"
        checkpoint.write_whole(path, lambda file: file.write(save(weights, metadata={"format": "pt"})))

    def _remove_old(self) -> None:
        for path in self.complete()[self.keep :]:
            for each in (manifest_of(path), path):  # what has no manifest is no checkpoint
                with suppress(OSError):
                    each.unlink()

    def put_by(self, damaged: Sequence[Path]) -> None:
        """Rename checkpoints that cannot be read, so that they do not count among the newest, which stay."""
        for path in damaged:
            for each in (manifest_of(path), path):
                with suppress(OSError):
                    os.replace(each, f"{each}.damaged")

    def clean(self) -> list[str]:
        """Remove what a process that was killed left unfinished, and put by checkpoints without a manifest.

        For the one process that writes here.

        Returns:
            A line for each that was put by.
        """
        for path in self.folder.glob(".*.tmp"):
            with suppress(OSError):
                path.unlink()
        unsure = self.unsure()
        for old in self._all(f".pt{_UNSURE}"):  # of an earlier start: each kill leaves one, and room is short
            if unsure and _age(old) < _age(unsure[0]):
                with suppress(OSError):
                    old.unlink()
        return [line for path in unsure if (line := self._put_by_unsure(path))]

    def _put_by_unsure(self, path: Path) -> str:
        """Rename a checkpoint without a manifest, unless it is a second name of one that has its own."""
        target = path.with_name(f"{path.name}{_UNSURE}")
        with suppress(OSError):
            if any(os.path.samefile(path, each) for each in self.complete()):
                path.unlink()
                return ""
            os.replace(path, target)
            return (
                f"warning: {path} has no manifest, which is written last: nothing is resumed from it; it is "
                f"kept as {target.name} until a newer one is put by"
            )
        return ""


def _link(path: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
