"""A folder of images, one sub-folder per class (torchvision's ImageFolder layout), listed once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fasttrain.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".jp2")
"""Image files, by the end of their lower-case names."""


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The images of a folder, ordered by class and file name."""

    root: str
    """The folder."""
    classes: tuple[str, ...]
    """Names of the class folders, sorted; a label is an index into them."""
    files: tuple[str, ...]
    """The images' paths relative to `root`."""
    labels: tuple[int, ...]
    """The class of each image."""

    def path(self, index: int) -> str:
        """The path of one image, `root` included."""
        return os.path.join(self.root, self.files[index])


def scan(root: str | Path, classes: Sequence[str] | None = None) -> ImageFolder:
    """Lists the images of `root`.

    Args:
        root: a folder with one folder of images per class; hidden entries are ignored.
        classes: the class names that the folder must have, in any order (those of the training images).

    Raises:
        DataError: `root` is missing or no folder, has no class folders or others than `classes`, or a class
            folder holds no image.
    """
    top = os.fspath(root)
    found = _class_folders(top)
    if classes is not None:
        _check_classes(top, found, classes)
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(found):
        images = sorted(_images(os.path.join(top, name)))
        if not images:
            raise DataError(
                f"class folder {os.path.join(top, name)} holds no image; allowed: {', '.join(SUFFIXES)}"
            )
        files.extend(f"{name}/{image}" for image in images)
        labels.extend([label] * len(images))
    return ImageFolder(root=top, classes=tuple(found), files=tuple(files), labels=tuple(labels))


def _class_folders(root: str) -> list[str]:
    if not os.path.exists(root):
        raise DataError(f"image folder {root!r} does not exist; give a folder with one folder per class")
    if not os.path.isdir(root):
        raise DataError(f"image folder {root!r} is not a folder; give a folder with one folder per class")
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
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
                if entry.name[0] != "." and entry.name.lower().endswith(SUFFIXES) and not entry.is_dir():
                    yield entry.name
    except OSError as error:
        raise DataError(f"class folder {folder!r} cannot be read: {error.strerror}") from None


def _check_classes(root: str, found: Sequence[str], expected: Sequence[str]) -> None:
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    parts = [
        f"{len(names)} {what} ({_few(names)})"
        for what, names in (("missing", missing), ("extra", extra))
        if names
    ]
    if parts:
        raise DataError(
            f"image folder {root!r} has other classes than the training images: {', '.join(parts)}; "
            f"allowed: the same {len(expected)} class folders"
        )


def _few(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
