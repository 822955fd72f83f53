"""A run's small text files: JSON that every reader takes, written whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import ConfigError, encodable

RUNS_OWN = frozenset(
    ("config.json", "environment.json", "metrics.jsonl", "status.json", "log.txt", "wandb.id")
)
"""Files of a run's folder that nothing but its training writes, beside `checkpoints`."""


def is_runs_own(path: Path) -> bool:
    """Whether a path is that of a file which only training writes."""
    folder, name = os.path.split(os.path.realpath(path))
    run = os.path.dirname(folder) if os.path.basename(folder) == "checkpoints" else folder
    return (run != folder or name in RUNS_OWN) and any(
        os.path.isfile(os.path.join(run, each)) for each in ("config.json", "status.json")
    )


def is_no_file(path: Path) -> bool:
    """Whether something other than a file lies there: a folder, or a device, which would be replaced."""
    return os.path.exists(path) and not os.path.isfile(path)


def check_output(option: str, path: Path) -> None:
    """Whether a file can be written where an option says, before what goes into it is computed.

    Raises:
        ConfigError: it is a folder, a device, in no folder or in one that cannot be written to, or a
            run's own file.
    """
    if is_no_file(path) or not os.path.isdir(path.parent):  # unlike Path.is_dir, never raises
        raise ConfigError(f"{option} is {path}; allowed: a file in a folder that exists")
    if is_runs_own(path):
        raise ConfigError(f"{option} is {path}, a run's own file; allowed: another file")
    try:
        with suppress(FileNotFoundError):
            os.stat(path)
    except OSError as error:  # a name that is too long, a link to itself
        why = (error.strerror or str(error)).lower()
        raise ConfigError(f"{option} is {path}: {why}; allowed: a file in a folder that exists") from None
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{option} is {path}: cannot write to {path.parent}: {error.strerror}") from None


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all."""
    replace_text(path, to_json(value, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    replace_bytes(path, encodable(text).encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line, whole or not at all.

    Raises:
        OSError: it cannot be written, as on a full disk; the file is as before.
    """
    data = f"{encodable(line)}\n".encode()
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(end)
            raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read, as while another process replaces it."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
