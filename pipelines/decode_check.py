"""Finds the image that made a batch fail, with the decoder that failed on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
from nvidia.dali import Pipeline, fn

from fasttrain.config import Data

from .folder import ImageFolder, is_remote
from .graphs import decode
from .sources import Source, source_of

_CHUNK = 32
"""Images tried at once, before those of a failing chunk are tried one by one."""


def find_undecodable(folder: ImageFolder, indices: Sequence[int], threads: int = 4) -> tuple[str, str] | None:
    """The first of some images that cannot be read or decoded, by its path, and why; None when all can."""
    for index in indices:
        reason = folder.fault(index)
        if reason:
            return folder.path(index), reason
    why = "cannot be decoded: it is damaged or no image"
    if is_remote(folder.root):
        why = "cannot be read or decoded (the store is named and unlocked by the AWS_* variables)"
    with closing(source_of(folder, threads)) as source:
        for start in range(0, len(indices), _CHUNK):
            chunk = indices[start : start + _CHUNK]
            if not _decodes(source, chunk, threads):
                for index in chunk:
                    if not _decodes(source, [index], 1):
                        return folder.path(index), why
    return None


def _decodes(source: Source, indices: Sequence[int], threads: int) -> bool:
    """Whether all images decode."""
    pipeline = Pipeline(batch_size=len(indices), num_threads=threads, device_id=None, prefetch_queue_depth=1)
    where = source.locate(np.array(indices, np.int64))
    with pipeline:
        pipeline.set_outputs(decode(source.read(fn.external_source(lambda: where, batch=True)), Data()))
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True
