"""A run folder belongs to one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from ..errors import ConfigError


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
        raise ConfigError(f"run.folder: cannot write to {str(folder)!r}: {error.strerror}") from None
    if not _locked(file, folder, fcntl.LOCK_EX):
        file.close()
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file


def look(folder: Path) -> None:
    """Whether a folder could be taken now; several processes may look at once.

    Raises:
        ConfigError: another process has it.
    """
    try:
        file = (folder / "lock").open()
    except (OSError, ValueError):  # none yet; a folder that cannot be is told where it is made
        return
    with file:
        _locked(file, folder, fcntl.LOCK_SH)


def _locked(file: TextIO, folder: Path, kind: int) -> bool:
    """Lock a file, if its file system has locks.

    Raises:
        ConfigError: another process has locked it.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        file.seek(0)
        owner = file.read(200).strip()
        file.close()
        raise ConfigError(
            f"{folder} is being written by another process ({owner}); allowed: to wait for its end, or "
            "another --run.name"
        ) from None
    except OSError:  # some network file systems have none
        return False
