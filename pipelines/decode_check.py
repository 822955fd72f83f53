"""Finds the image that made a batch fail, with the decoder that failed on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nvidia.dali import Pipeline, fn, types

from .folder import ImageFolder
from .graphs import decode

_CHUNK = 32
"""Images tried at once, before those of a failing chunk are tried one by one."""


def find_undecodable(folder: ImageFolder, indices: Sequence[int], threads: int = 4) -> tuple[str, str] | None:
    """The first of some images that cannot be read or decoded, by its path, and why; None when all can."""
    for index in indices:
        reason = folder.fault(index)
        if reason:
            return folder.path(index), reason
    for start in range(0, len(indices), _CHUNK):
        chunk = indices[start : start + _CHUNK]
        if not _decodes([folder.read(index) for index in chunk], threads):
            for index in chunk:
                if not _decodes([folder.read(index)], 1):
                    return folder.path(index), "cannot be decoded: it is damaged or no image"
    return None


def _decodes(images: Sequence[bytes], threads: int) -> bool:
    """Whether all images decode."""
    pipeline = Pipeline(batch_size=len(images), num_threads=threads, device_id=None, prefetch_queue_depth=1)
    arrays = [np.frombuffer(image, np.uint8) for image in images]
    with pipeline:
        source = fn.external_source(lambda: arrays, batch=True, dtype=types.DALIDataType.UINT8, ndim=1)
        pipeline.set_outputs(decode(source))
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True
