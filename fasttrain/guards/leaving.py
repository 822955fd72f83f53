"""The end of a process that does not wait for its main thread."""

from __future__ import annotations

import os
from typing import NoReturn

from ..errors import RunError
from ..launch.status import tell_exit


def leave(error: RunError, who: str = "") -> NoReturn:
    """Tell why this process ends, and end it at once, from any thread.

    Args:
        error: its message and exit status.
        who: what the message begins with.
    """
    try:
        tell_exit(error.exit_status, str(error))
        os.write(2, f"fasttrain: {who}{error}\n".encode(errors="backslashreplace"))
    finally:  # whatever became of the words
        os._exit(error.exit_status)
