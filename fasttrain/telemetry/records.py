"""A run's metrics.jsonl, read while it grows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_NUMBERS = frozenset(
    (
        *("epoch", "epochs", "step", "global_step", "pid", "loss", "train_top1", "top1", "mean", "lr"),
        *("images_per_second", "eta_seconds"),
    )
)
_TEXTS = frozenset(("state", "host", "time", "statistics"))
"""What the readers of a run's files calculate with, and show."""


def sound(values: Any) -> Record:
    """An object of a run's files without what is not of the kind that fasttrain writes; empty for no object.

    A disk or a hand may have spoiled one run's file, and the others are still to be listed. A loss that was
    not finite is None.
    """
    if not isinstance(values, dict):
        return {}
    kind = values.get("kind")
    return {name: value for name, value in values.items() if _is_sound(kind, name, value)}


def _is_sound(kind: Any, name: str, value: Any) -> bool:
    if kind == "subnets" and name == "top1":
        return isinstance(value, list)  # of each subnet; whoever reads them looks at each
    if name in _NUMBERS:
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        return number or (name == "loss" and value is None)
    return name not in _TEXTS or isinstance(value, str)


def parse(line: bytes | str) -> Record:
    """One line; empty if it is none of a record, as after a crash."""
    try:
        return sound(json.loads(line))
    except (ValueError, RecursionError):
        return {}


class Records:
    """The records of a file that is being written: whole lines only, each once.

    Attributes:
        all: what was read so far.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is read yet; the file may be missing."""
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.all: list[Record] = []
        self._inode, self._offset = 0, 0

    def read(self) -> None:
        """Read on; from the start if the file is another, as after a resume."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._forget()
                    self._inode = status.st_ino
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            self._forget()
            return
        whole = data[: data.rfind(b"\n") + 1]  # the last line may be half written
        self._offset += len(whole)
        self.all += filter(None, map(parse, whole.splitlines()))

    def of(self, kind: str) -> list[Record]:
        """Those of a kind."""
        return [record for record in self.all if record.get("kind") == kind]
