"""What a test leaves behind in its process: threads, child processes, open files, temporary files, memory."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

OURS = Path("/proc/self")
MOST_MEMORY = 3 << 30
"""Bytes that a test process may hold after any test; two such processes fit beside each other in 8 GiB."""
MOST_THREADS = 64
"""Of any kind; libraries start some that stay (torch, OpenMP, tqdm), but not with every test."""
STAYS = (
    r"tqdm_monitor|pt_\w+"  # threads of tqdm and of torch's autograd
    r"|multiprocessing\.(forkserver|resource_tracker)|pymp-\w+"  # serve all pools that a process opens
    r"|pipe:|anon_inode:"  # the forkserver's; Python itself warns of a subprocess's, and warnings are errors
    r"|/site-packages/|__autograph_generated_file"  # a font of matplotlib's; a function of DALI's
    r"|torchinductor_\w+"  # torch's folder for what it compiles
)
"""What libraries keep for as long as the process lives."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds, each in words."""

    threads: frozenset[str]
    processes: frozenset[str]
    files: frozenset[str]
    temporary: frozenset[str]

    def since(self, before: Held, known: Sequence[str] = ()) -> list[str]:
        """What was not held before, but for what matches a `known` pattern, and what libraries keep."""
        expected = re.compile("|".join([STAYS, *known]))
        return [
            f"{kind.name}: {each}"
            for kind in fields(self)
            for each in sorted(getattr(self, kind.name) - getattr(before, kind.name))
            if not expected.search(each)
        ]


def held() -> Held:
    """What this process holds now."""
    return Held(_threads(), _children(), _files(), frozenset(os.listdir(tempfile.gettempdir())))


def left_since(before: Held, known: Sequence[str] = (), patience: float = 5) -> list[str]:
    """What is left, and what has grown too far.

    Args:
        before: what was held before.
        known: patterns of what may be left.
        patience: seconds; the kernel lists a thread for a moment after it was waited for.
    """
    end = time.monotonic() + patience
    while left := held().since(before, known) + beyond_bounds():
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    return left


def beyond_bounds() -> list[str]:
    """What of this process has grown too far."""
    pages = int((OURS / "statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE")
    threads = len(os.listdir(OURS / "task"))
    return [
        f"{what}: {number}, allowed: {most}"
        for what, number, most in (("bytes", memory, MOST_MEMORY), ("threads", threads, MOST_THREADS))
        if number > most
    ]


def _threads() -> frozenset[str]:
    """Python's threads and DALI's; others have no name that tells whose they are."""
    named = {f"{each.name} ({each.native_id})" for each in threading.enumerate() if each.is_alive()}
    for task in (OURS / "task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            name = (task / "comm").read_text().strip()
            if name.startswith("[DALI]"):
                named.add(f"{name} ({task.name})")
    return frozenset(name for name in named if not name.startswith("Dummy-"))


def _children() -> frozenset[str]:
    found = set()
    for task in (OURS / "task").iterdir():
        with suppress(OSError):
            for child in (task / "children").read_text().split():
                command = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
                found.add(f"{child} {command[:200] or 'that has ended and was not waited for'}")
    return frozenset(found)


def _files() -> frozenset[str]:
    found = set()
    for number in (OURS / "fd").iterdir():
        with suppress(OSError):
            found.add(f"{number.name} {os.readlink(number)}")
    return frozenset(found)
