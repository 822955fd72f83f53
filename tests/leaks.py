"""What a test leaves behind in its process: threads, child processes, open files, temporary files."""

from __future__ import annotations

import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds, each described in words; a set's difference to an earlier one is a leak."""

    threads: frozenset[str]
    processes: frozenset[str]
    files: frozenset[str]
    temporary: frozenset[str]

    def since(self, before: Held) -> list[str]:
        """What was not held before."""
        return [
            f"{kind.removesuffix('s')} {each}"
            for kind in ("threads", "processes", "files", "temporary")
            for each in sorted(getattr(self, kind) - getattr(before, kind))
        ]


def held() -> Held:
    """What this process holds now."""
    return Held(_threads(), _children(), _files(), frozenset(os.listdir(tempfile.gettempdir())))


def _threads() -> frozenset[str]:
    names = {str(each.native_id): each.name for each in threading.enumerate()}
    found = set()
    for task in os.listdir("/proc/self/task"):
        try: found.add(f"{names.get(task) or Path(f'/proc/self/task/{task}/comm').read_text().strip()} {task}")
        except OSError: pass
    return frozenset(found)


def _children() -> frozenset[str]:
    found = set()
    for task in os.listdir("/proc/self/task"):
        try:
            for child in Path(f"/proc/self/task/{task}/children").read_text().split():
                found.add(f"{child} " + Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")[:100])
        except OSError: pass
    return frozenset(found)


def _files() -> frozenset[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try: found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError: pass
    return frozenset(found)
