"""How a DALI graph comes by encoded images: DALI reads files; members of tars are read at their offsets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn

from .folder import ImageFolder

Node = Any
"""A nvidia.dali DataNode."""

OPEN_TARS = 128
"""Tars that a process keeps open: fewer than systems allow files."""


class Source(Protocol):
    """Encoded images by their index."""

    def locate(self, images: NDArray[np.int64]) -> NDArray[Any]:
        """What the graph takes in for B images, a row for each."""
        ...

    def read(self, where: Node) -> Node:
        """The encoded images, uint8 [bytes], from those rows."""
        ...

    def close(self) -> None:
        """End its threads and close its files; nobody reads from it any more."""
        ...


def source_of(folder: ImageFolder, threads: int) -> Source:
    """The source of a folder's images; `threads` read members of tars."""
    if folder.members is None:
        return Files(folder)
    return Tars(folder, threads)


class Files:
    """Images in files of their own, which DALI reads."""

    def __init__(self, folder: ImageFolder) -> None:
        """The files of a folder."""
        self._folder = folder

    def locate(self, images: NDArray[np.int64]) -> NDArray[np.uint8]:
        """File names, uint8 [B, bytes of the longest], shorter ones filled up with NULs.

        One array for the batch costs the calling thread a third of what a list of arrays does.
        """
        names = np.array([os.fsencode(self._folder.path(index)) for index in images.tolist()])
        return names.view(np.uint8).reshape(len(names), names.itemsize)

    def read(self, where: Node) -> Node:
        """The files' contents; a name ends at its first NUL, if any."""
        return fn.io.file.read(where)

    def close(self) -> None:
        """Nothing is open between two reads."""


class Tars:
    """Images in uncompressed tars, read at their offsets."""

    def __init__(self, folder: ImageFolder, threads: int) -> None:
        """The tars of a folder whose images have `members`."""
        self._folder = folder
        self._tar = lru_cache(maxsize=OPEN_TARS)(_OpenFile)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tars")

    def locate(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """The indices themselves, int64 [B]."""
        return images

    def read(self, where: Node) -> Node:
        """The members' bytes."""
        return fn.python_function(where, function=self._read, num_outputs=1, batch_processing=True)

    def close(self) -> None:
        """End the threads, close the tars."""
        self._pool.shutdown()
        self._tar.cache_clear()

    def _read(self, images: Sequence[NDArray[np.int64]]) -> list[NDArray[np.uint8]]:
        """Called by DALI's executor, so that the training thread waits for no disk."""
        indices = [int(index) for index in images]
        shares = [indices[start :: self._threads] for start in range(self._threads)]
        contents: list[Any] = [None] * len(indices)
        for start, share in enumerate(self._pool.map(self._read_some, shares)):
            contents[start :: self._threads] = share
        return contents

    def _read_some(self, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        folder = self._folder
        return [self._tar(folder.container(index)).read(*folder.span(index)) for index in indices]


class _OpenFile:
    """A file that stays open until nobody refers to it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, count: int) -> NDArray[np.uint8]:
        contents = os.pread(self._descriptor, count, offset)
        if len(contents) < count:
            raise EOFError(f"{self._path} ends before byte {offset + count}")
        return np.frombuffer(contents, np.uint8)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
