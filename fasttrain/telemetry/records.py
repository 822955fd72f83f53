"""A run's metrics.jsonl, read while it grows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def parse(line: bytes | str) -> Record:
    """One line; empty if it is none of a record, as after a crash."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


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
