"""Finds the file that made a batch fail, with the decoder that failed on it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from nvidia.dali import Pipeline, fn, types

from .graphs import decode, encode_paths, read

_CHUNK = 32
"""Files tried at once, before those of a failing chunk are tried one by one."""


def find_undecodable(paths: Sequence[str], threads: int = 4) -> tuple[str, str] | None:
    """The first file that cannot be read or decoded and why, or None when all can."""
    for path in paths:
        reason = _file_error(path)
        if reason:
            return path, reason
    for start in range(0, len(paths), _CHUNK):
        chunk = paths[start : start + _CHUNK]
        if not _decodes(chunk, threads):
            for path in chunk:
                if not _decodes([path], 1):
                    return path, "cannot be decoded: it is damaged or no image"
    return None


def _file_error(path: str) -> str:
    """What is wrong with a file without looking into it, or an empty string."""
    try:
        size = os.stat(path).st_size
        with open(path, "rb"):
            return "" if size else "is empty"
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"


def _decodes(paths: Sequence[str], threads: int) -> bool:
    """Whether all files decode."""
    pipeline = Pipeline(batch_size=len(paths), num_threads=threads, device_id=None, prefetch_queue_depth=1)
    names = encode_paths(paths)
    with pipeline:
        source = fn.external_source(lambda: names, batch=True, dtype=types.DALIDataType.UINT8, ndim=1)
        pipeline.set_outputs(decode(read(source)))
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True
