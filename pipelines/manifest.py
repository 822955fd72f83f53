"""Manifests: the images of a data set with what `fasttrain data check` found out about each, as JSON lines.

The first line is the header, an object with `fasttrain_manifest` (the format's version), `root` (the images'
folder; `.`: the manifest's), `classes` (a label is an index into them), `shards` (tars that hold the
images, relative to the root; empty: each image is a file), `left_out` (path and reason of each bad image) and
`sha256` (of the header without it and all later lines). Every other line is an image: the fields of `Record`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from fasttrain.errors import DataError

from .classes import look
from .folder import ImageFolder, Members, hash_names, is_remote, reordered, scan

VERSION = 1
NAME = "manifest.jsonl"
"""A folder that holds a file of this name is read by it."""

_STAT_THREADS = 16
_LARGEST = 2**62  # bytes of a file, far above any


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a manifest."""

    path: str
    """Relative to the root; of a member of a tar, that of the file which it was packed from."""
    label: int
    """Index into the classes."""
    bytes: int
    """Length of the encoded image."""
    sha256: str
    """Of the encoded image, hexadecimal."""
    format: str
    """Pillow's name: JPEG, PNG, ..."""
    width: int
    """Pixels, as stored."""
    height: int
    """Pixels, as stored."""
    colour: str
    """Colour space, Pillow's mode: RGB, L (grey), CMYK, P (palette), ..."""
    orientation: int
    """EXIF orientation, 1 to 8; 1: upright. Training takes images as stored, whatever it says."""
    shard: int = -1
    """Index of the tar that holds the image; -1: none."""
    offset: int = 0
    """Its first byte there."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A bad image."""

    path: str
    """As in `Record`."""
    reason: str
    """What is wrong, to be read after the path."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Validated images, ordered by class and path."""

    root: str
    """Their folder."""
    classes: tuple[str, ...]
    """The classes' names."""
    records: tuple[Record, ...]
    """The good images."""
    left_out: tuple[Fault, ...] = ()
    """The bad ones."""
    shards: tuple[str, ...] = ()
    """Tars that hold the images, relative to the root."""

    def images(self) -> ImageFolder:
        """The images as the loaders take them."""
        records = self.records
        members = None
        if self.shards:
            shard, offset = (np.array([(each.shard, each.offset) for each in records], np.int64).T).copy()
            members = Members(self.shards, shard, offset)
        return ImageFolder(
            root=self.root,
            classes=self.classes,
            files=tuple(each.path for each in records),
            labels=tuple(each.label for each in records),
            members=members,
            sizes=np.array([each.bytes for each in records], np.int64),
            contents=hash_names(each.sha256 for each in records).hex(),
            left_out=len(self.left_out),
        )

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            DataError: it cannot be written.
        """
        header = {
            "fasttrain_manifest": VERSION,
            "root": _written_root(self.root, path),
            "classes": self.classes,
            "shards": self.shards,
            "left_out": [asdict(fault) for fault in self.left_out],
        }
        names = [field.name for field in fields(Record)]
        if not self.shards:
            names = [name for name in names if name not in ("shard", "offset")]
        # not asdict, which takes minutes for millions
        lines = [_line({name: getattr(each, name) for name in names}) for each in self.records]
        text = [_line(header | {"sha256": _digest(header, lines)}), *lines]
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w") as file:
                file.writelines(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise DataError(f"cannot write the manifest {path}: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)


def read_manifest(path: Path) -> Manifest:
    """A manifest, as written.

    Raises:
        DataError: it cannot be read, is none, is of another version, was changed since, or cannot be right.
    """
    try:
        with path.open(encoding="utf-8") as file:
            first, *lines = file.readlines() or [""]
        header = json.loads(first)
        version = header["fasttrain_manifest"]
    except OSError as error:
        raise DataError(f"manifest {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(
            f"{path} is no manifest; give one that `fasttrain data check DIR -o FILE` wrote, or a folder"
        ) from None
    if version != VERSION:
        raise DataError(f"manifest {path} is of version {version}; allowed: {VERSION}")
    if header.pop("sha256", None) != _digest(header, lines):
        raise DataError(f"manifest {path} was changed or cut off after it was written; make it anew")
    manifest = _read_header(path, header)
    return replace(manifest, records=_read_records(path, lines, manifest))


def find_manifest(path: str | Path) -> Path | None:
    """The manifest that a path names: itself, or in the folder it is."""
    given = Path(path)
    inside = given / NAME
    # os.path's answer to names that are too long, or in closed folders, is no, where pathlib raises
    return given if os.path.isfile(given) else inside if os.path.isfile(inside) else None


def open_images(path: str | Path, classes: Sequence[str] | None = None) -> ImageFolder:
    """The images of a manifest, of a folder with one (tars, for one), or of a folder of class folders.

    Args:
        path: of the file or folder.
        classes: names that the classes must have (those of the training images), in the order of the labels.

    Raises:
        DataError: nothing of the kind, or other classes; see `folder.scan` and `read_manifest`.
    """
    found = find_manifest(path)
    if found is None:
        return scan(path, classes)
    images = read_manifest(found).images()
    if not images.files:
        raise DataError(f"manifest {found} holds no image")
    return images if classes is None else reordered(images, classes, f"manifest {str(found)!r}")


def check_presence(images: ImageFolder) -> None:
    """Whether the files of a manifest exist and have the sizes that it says; without one, or with remote
    ones, all is well.

    Raises:
        DataError: how many do not, and the first.
    """
    if images.sizes is None or is_remote(images.root):
        return
    expected: dict[str, int] = {}  # of a tar, up to the end of its last image
    for index, size in enumerate(images.sizes.tolist()):
        end = size if images.members is None else sum(images.span(index))
        path = images.container(index)
        expected[path] = max(expected.get(path, 0), end)
    tars = images.members is not None
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        faults = list(filter(None, pool.map(_size_fault, expected, expected.values(), repeat(tars))))
    if faults:
        alike = _lookalike(next(filter(_is_missing, expected), ""))
        raise DataError(
            f"{len(faults)} of {len(expected)} files under {images.root} are not as the manifest says; "
            f"the first: {faults[0]}{alike}; mend them, or make the manifest anew"
        )


def _is_missing(path: str) -> bool:
    return not os.path.lexists(path)


def _lookalike(path: str) -> str:
    """Of a file that is missing, a remark on one whose name looks alike, as copies from a Mac have it."""
    while path and _is_missing(os.path.dirname(path)):
        path = os.path.dirname(path)
    folder, name = os.path.split(path)
    for other in sorted(os.listdir(folder)) if folder else []:
        if other != name and look(other) == look(name):
            return f"; {other!a} is there, which looks like {name!a}"
    return ""


def _size_fault(path: str, size: int, longer: bool) -> str:
    try:
        found = os.stat(path).st_size
    except OSError as error:
        return f"{path} cannot be read ({(error.strerror or str(error)).lower()})"
    if found == size or (longer and found > size):
        return ""
    return f"{path} has {found} bytes, not {'at least ' if longer else ''}{size}"


def _written_root(root: str, manifest: Path) -> str:
    """Relative where the manifest lies in the root, so that both can be moved together."""
    if is_remote(root):
        return root
    same = os.path.realpath(root) == os.path.realpath(manifest.parent)
    return "." if same else os.path.abspath(root)


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"


def _digest(header: dict[str, Any], lines: Iterable[str]) -> str:
    digest = hashlib.sha256(_line(header).encode())
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()


def _read_header(path: Path, header: dict[str, Any]) -> Manifest:
    """The manifest without its records."""
    try:
        root, classes, shards = (header[name] for name in ("root", "classes", "shards"))
        left_out = tuple(Fault(**fault) for fault in header["left_out"])
        texts = [
            root,
            *classes,
            *shards,
            *(text for fault in left_out for text in (fault.path, fault.reason)),
        ]
        fits = isinstance(classes, list) and isinstance(shards, list) and all(map(_is_text, texts))
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise DataError(f"manifest {path} has a wrong header; allowed: as `fasttrain data check` writes it")
    for names in (classes, shards):
        _check_once(path, names)
    _check_paths(path, shards)
    root = root if is_remote(root) else os.path.normpath(path.parent / root)
    return Manifest(root, tuple(classes), (), left_out, tuple(shards))


_NAMES, _TYPES = zip(*get_type_hints(Record).items(), strict=True)
_VALUES = attrgetter(*_NAMES)


def _read_records(path: Path, lines: Sequence[str], header: Manifest) -> tuple[Record, ...]:
    records: list[Record] = []
    for number, line in enumerate(lines, 2):
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError, RecursionError):
            raise DataError(f"manifest {path}, line {number}, is no image's; make it anew") from None
        fault = _record_fault(record, header)
        if fault:
            raise DataError(f"manifest {path}, line {number}: {fault}")
        records.append(record)
    _check_paths(path, (each.path for each in records))
    _check_once(path, [each.path for each in records])
    return tuple(records)


def _record_fault(record: Record, header: Manifest) -> str:
    """What cannot be right about an image's line, or an empty string."""
    values = _VALUES(record)
    if tuple(map(type, values)) != _TYPES:
        each = zip(_TYPES, _NAMES, values, strict=True)
        kind, name, value = next(entry for entry in each if type(entry[2]) is not entry[0])
        return f"{name} is {value!r}; allowed: a value of type {kind.__name__}"
    if not 0 <= record.label < len(header.classes):
        return f"label is {record.label}; allowed: 0 to {len(header.classes) - 1}, an index into the classes"
    if not (0 <= record.shard < len(header.shards) or (record.shard == -1 and not header.shards)):
        return (
            f"shard is {record.shard}; allowed: an index into the {len(header.shards)} shards, or -1 for none"
        )
    if not (0 < record.bytes < _LARGEST and 0 <= record.offset < _LARGEST):
        return f"bytes is {record.bytes}, offset {record.offset}; allowed: sizes of files"
    return "" if _is_text(record.path) else f"path is {record.path!r}; allowed: a file's name"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _check_once(manifest: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        name, count = Counter(names).most_common(1)[0]
        raise DataError(f"manifest {manifest} names {name!r} {count} times; allowed: once")


def _check_paths(manifest: Path, names: Iterable[str]) -> None:
    """No path leads out of the root."""
    for name in names:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise DataError(f"manifest {manifest} names {name!r}; allowed: paths below its root")
