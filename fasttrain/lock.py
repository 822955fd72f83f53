"""A run folder belongs to one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from .errors import ConfigError


def lock(folder: Path) -> TextIO | None:
    """Take a folder that exists; it is given back when the file is closed or the process ends.

    Returns:
        The locked file, to be kept; None where the file system has no locks.

    Raises:
        ConfigError: another process has it, or its lock cannot be written.
    """
    try:
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise ConfigError(f"run.folder: cannot write to {str(folder)[:200]!r}: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read(200).strip()
        file.close()
        raise ConfigError(
            f"{folder} is being written by another process ({owner}); allowed: to wait for its end, or "
            "another --run.name"
        ) from None
    except OSError:  # some network file systems
        file.close()
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file
