"""Labelled images: files in one folder per class (torchvision's ImageFolder layout), or members of tars."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fasttrain.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".jp2")
"""Image files, by the end of their lower-case names."""


@dataclass(frozen=True, slots=True)
class Members:
    """Where in uncompressed tars the images' bytes are."""

    shards: tuple[str, ...]
    """The tars' paths relative to the root."""
    shard: NDArray[np.int64]
    """[N], the tar of each image."""
    offset: NDArray[np.int64]
    """[N], the first byte of each image in its tar."""


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Labelled images, ordered by class and path."""

    root: str
    """The folder, or an address that DALI reads (s3://...)."""
    classes: tuple[str, ...]
    """The classes' names; a label is an index into them."""
    files: tuple[str, ...]
    """The images' paths relative to `root`; of members of tars, those that they were packed from."""
    labels: tuple[int, ...]
    """The class of each image."""
    members: Members | None = field(default=None, compare=False)
    """Where the images are, if in tars."""
    sizes: NDArray[np.int64] | None = field(default=None, compare=False)
    """[N], the length of each image in bytes, if known; known of members."""
    contents: str = ""
    """Hash of all images' SHA-256s, if they are known: then the images were validated."""
    left_out: int = 0
    """Bad images that a manifest leaves out."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of classes, paths and labels, and of the images' bytes where those are known.

        The same images have the same one in a folder's manifest and in tars.
        """
        labels = np.array(self.labels, np.int64).tobytes()
        parts = (hash_names(self.classes), hash_names(self.files), labels, self.contents.encode())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def path(self, index: int) -> str:
        """The path of one image, `root` included; of a member of a tar, `TAR:PATH`."""
        file, members = self.files[index], self.members
        if members is None:
            return os.path.join(self.root, file)
        return f"{self.container(index)}:{file}"

    def span(self, index: int) -> tuple[int, int]:
        """Offset and length of a member of a tar, bytes."""
        assert self.members is not None
        assert self.sizes is not None
        return int(self.members.offset[index]), int(self.sizes[index])

    def container(self, index: int) -> str:
        """The file that holds one image: its own, or the tar."""
        members = self.members
        name = self.files[index] if members is None else members.shards[members.shard[index]]
        return os.path.join(self.root, name)

    def read(self, index: int) -> bytes:
        """One image's encoded bytes, fewer if the file is shorter.

        Raises:
            OSError: the file cannot be read.
        """
        with open(self.container(index), "rb") as file:
            if self.members is None:
                return file.read()
            offset, size = self.span(index)
            file.seek(offset)
            return file.read(size)

    def fault(self, index: int) -> str:
        """What is wrong with one image without looking into it, or an empty string, as for remote ones."""
        if is_remote(self.root):
            return ""
        try:
            found = len(self.read(index))
        except OSError as error:
            return f"cannot be read: {(error.strerror or str(error)).lower()}"
        if self.members is not None and found < self.span(index)[1]:
            return "cannot be read: its tar ends before it does"
        return "" if found else "is empty"


def thinned(images: ImageFolder, count: int) -> ImageFolder:
    """`count` of the images, evenly spread over all and so over the classes; all, if there are no more."""
    if count >= len(images.files):
        return images
    return chosen(images, np.arange(count) * len(images.files) // count)


def chosen(images: ImageFolder, kept: NDArray[np.int64]) -> ImageFolder:
    """Some of the images, by their indices."""
    members = images.members
    return replace(
        images,
        files=tuple(images.files[i] for i in kept),
        labels=tuple(images.labels[i] for i in kept),
        members=members and Members(members.shards, members.shard[kept], members.offset[kept]),
        sizes=None if images.sizes is None else images.sizes[kept],
        contents="",  # is of all
    )


def is_remote(root: str) -> bool:
    """Whether images are elsewhere, for DALI alone to read."""
    return root.startswith("s3://")


def hash_names(names: Iterable[str]) -> bytes:
    """SHA-256 of a list of names (which hold no NUL)."""
    return hashlib.sha256(b"".join(os.fsencode(name) + b"\0" for name in names)).digest()


def scan(root: str | Path, classes: Sequence[str] | None = None) -> ImageFolder:
    """Lists the images of `root`.

    Args:
        root: a folder with one folder of images per class; hidden entries are ignored.
        classes: the class names that the folder must have, in the order of the labels (those of the training
            images); without them, the folders' names, sorted.

    Raises:
        DataError: `root` is missing or no folder, has no class folders or others than `classes`, or a class
            folder holds no image.
    """
    top = os.fspath(root)
    found = _class_folders(top)
    if classes is not None:
        check_classes(f"image folder {top!r}", found, classes)
    files: list[str] = []
    labels: list[int] = []
    names = found if classes is None else list(classes)
    for label, name in enumerate(names):
        images = sorted(_images(os.path.join(top, name)))
        if not images:
            raise DataError(
                f"class folder {os.path.join(top, name)} holds no image; allowed: {', '.join(SUFFIXES)}"
            )
        files.extend(f"{name}/{image}" for image in images)
        labels.extend([label] * len(images))
    return ImageFolder(root=top, classes=tuple(names), files=tuple(files), labels=tuple(labels))


def _class_folders(root: str) -> list[str]:
    if not os.path.exists(root) and re.match("[a-z0-9]+:/", root):
        raise DataError(
            f"{root!r} is an address; allowed: s3:// by a manifest (data check DIR -o FILE --root s3://...)"
        )
    if not os.path.exists(root):
        raise DataError(
            f"image folder {root!r} does not exist; give a folder with one folder per class, or a manifest"
        )
    if not os.path.isdir(root):
        raise DataError(f"image folder {root!r} is not a folder; give a folder with one folder per class")
    try:
        with os.scandir(root) as entries:
            seen = [entry for entry in entries if entry.name[0] != "."]
            names = sorted(entry.name for entry in seen if _is_folder(entry))
            for entry in seen:
                if entry.is_symlink() and not os.path.exists(entry.path):  # a class may be behind it
                    raise DataError(f"{entry.path} is a link that leads nowhere; mend or remove it")
    except OSError as error:
        raise DataError(f"image folder {root!r} cannot be read: {error.strerror}") from None
    if not names:
        raise DataError(
            f"image folder {root!r} has no class folders; give a folder with one folder per class"
        )
    return names


def _images(folder: str) -> Iterator[str]:
    """The names of a folder's images; a name that looks like an image is not opened here."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _looks_like_an_image(entry):
                    continue
                if _is_device(entry):  # reading it may never end
                    raise DataError(f"image {entry.path} is a pipe or a device; remove it")
                yield entry.name
    except OSError as error:
        raise DataError(f"class folder {folder!r} cannot be read: {error.strerror}") from None


def ignored(images: ImageFolder) -> list[str]:
    """What `scan` passed over, relative paths, sorted: images outside of the class folders, all else within.

    Raises:
        DataError: a folder cannot be read.
    """
    found: list[str] = []
    for folder in ("", *images.classes):
        try:
            with os.scandir(os.path.join(images.root, folder)) as entries:
                found += [
                    os.path.join(folder, entry.name)
                    for entry in entries
                    # images belong into class folders, and nothing else does
                    if entry.name[0] != "." and _looks_like_an_image(entry) != bool(folder)
                ]
        except OSError as error:
            raise DataError(f"folder {images.root}/{folder} cannot be read: {error.strerror}") from None
    return sorted(found)


def _looks_like_an_image(entry: os.DirEntry[str]) -> bool:
    return entry.name[0] != "." and entry.name.lower().endswith(SUFFIXES) and not _is_folder(entry)


def _is_device(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.is_file() and os.path.exists(entry.path)
    except OSError:  # a loop of links
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, for one: named when it is read
        return False


def check_classes(what: str, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raises DataError if `what` has other classes than expected, in whatever order."""
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    parts = [
        f"{len(names)} {side} ({_few(names)})"
        for side, names in (("missing", missing), ("extra", extra))
        if names
    ]
    if parts:
        raise DataError(
            f"{what} has other classes than those given (the training images' or a list): "
            f"{', '.join(parts)}; allowed: the same {len(expected)} class folders"
        )


def _few(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
