"""Finds the image that made a batch fail, by its decoder, in a process that may die of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn

from fasttrain.config import Data

from .decoding import decode, random_windows
from .examine import UNDECODABLE, deadly
from .folder import ImageFolder, chosen, is_remote
from .sources import Source, source_of
from .workers import Killed, alone

_CHUNK = 32
"""Images tried at once, before those of a failing chunk are tried one by one."""
_REMOTE = "cannot be read or decoded (the store is named and unlocked by the AWS_* variables)"


@dataclass(frozen=True, slots=True)
class _Suspects:
    """Images, one of which may be to blame."""

    images: ImageFolder
    crops: NDArray[Any] | None
    """Numbers of the windows by which training decoded them; None: it decoded them whole."""
    threads: int

    def __getitem__(self, part: slice) -> _Suspects:
        crops = None if self.crops is None else self.crops[part]
        count = range(len(self.images.files))[part]
        return _Suspects(chosen(self.images, np.array(count, np.int64)), crops, self.threads)


def find_undecodable(
    folder: ImageFolder, indices: Sequence[int], crops: NDArray[Any] | None = None, threads: int = 4
) -> tuple[str, str] | None:
    """The first of some images that cannot be read or decoded, by its path, and why; None when all can.

    Args:
        folder: the images.
        indices: which.
        crops: what training decodes of them, `draws.augmentation`'s `crop` of each; None: they are decoded
            whole.
        threads: DALI's.
    """
    for index in indices:
        reason = folder.fault(index)
        if reason:
            return folder.path(index), reason
    return _search(_Suspects(chosen(folder, np.array(indices, np.int64)), crops, threads))


def _search(suspects: _Suspects) -> tuple[str, str] | None:
    """The first that fails, or that ends its process."""
    count = len(suspects.images.files)
    try:
        found = alone(_first_undecodable, suspects, preload=__name__)
    except Killed as death:
        if death.by_the_system:
            return None
        if count == 1:
            return suspects.images.path(0), deadly(death)
        return _search(suspects[: count // 2]) or _search(suspects[count // 2 :])
    if found is None:
        return None
    return suspects.images.path(found), _REMOTE if is_remote(suspects.images.root) else UNDECODABLE


def _first_undecodable(suspects: _Suspects) -> int | None:
    """Runs in a process of its own. By the windows first, then whole: what is missing may be needed later."""
    with closing(source_of(suspects.images, suspects.threads)) as source:
        for crops in (suspects.crops, None) if suspects.crops is not None else (None,):
            decodes = partial(_decodes, source, crops)
            for start in range(0, len(suspects.images.files), _CHUNK):
                chunk = range(len(suspects.images.files))[start : start + _CHUNK]
                if not decodes(chunk, suspects.threads):
                    for index in chunk:
                        if not decodes([index], 1):
                            return index
    return None


def _decodes(source: Source, crops: NDArray[Any] | None, indices: Sequence[int], threads: int) -> bool:
    """Whether all images decode, by their windows or whole."""
    pipeline = Pipeline(batch_size=len(indices), num_threads=threads, device_id=None, prefetch_queue_depth=1)
    where = source.locate(np.array(indices, np.int64))
    with pipeline:
        encoded = source.read(fn.external_source(lambda: where, batch=True))
        window = None
        if crops is not None:
            numbers = crops[list(indices)]
            window = random_windows(encoded, fn.external_source(lambda: numbers, batch=True))
        pipeline.set_outputs(decode(encoded, Data(), window=window))
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True
