"""What a process tells launch.sh: files in the directory that FASTTRAIN_STATUS names, on the node's own disk.

`start` holds the global step at which this start begins, `exit` the exit status and the message of the first
process of the node that ends for a reason of its own. torchrun turns every failure into exit status 1.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..errors import encodable

DIRECTORY = "FASTTRAIN_STATUS"


def tell_start(global_step: int) -> None:
    """Write where this start begins; the node's first process alone."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _write("start", f"{global_step}\n")


def tell_exit(status: int, message: str) -> None:
    """Write how this process ends, unless another of the node has: consequences do not hide their cause."""
    _write("exit", f"{status}\n{message}\n")


def _write(name: str, text: str) -> None:
    folder = os.environ.get(DIRECTORY)
    if folder:
        with suppress(OSError), (Path(folder) / name).open("xb") as file:  # it would hide what ends the run
            file.write(encodable(text).encode())
