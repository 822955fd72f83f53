"""`fasttrain data check`: every image decoded once, in parallel, and what was found out about it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Self, TextIO, TypeVar

from fasttrain.errors import ConfigError, DataError

from .classes import arranged
from .examine import BATCH, Finding, Place, deadly, examine
from .folder import ImageFolder, is_remote, reordered, scan
from .manifest import Fault, Manifest, Record, find_manifest, read_manifest
from .workers import Killed, Workers

T = TypeVar("T")

_RULES = 2
"""Of what is good: progress under other rules is not gone on with."""
_FOUND = tuple(field.name for field in fields(Finding) if field.name not in ("fault", "message"))


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of a check."""

    manifest: Manifest
    """The good images; the bad ones are its `left_out`."""
    resumed: int
    """Images that an interrupted check had found good before."""
    seconds: float
    """What it took."""
    cores: float
    """How many were busy on average."""
    messages: tuple[Fault, ...] = ()
    """Good images at which training's decoder writes a line, which has no name: their paths, and the line."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The images to check, before any was looked at."""

    images: ImageFolder
    places: tuple[Place, ...]
    """Where each is, and what is known of it."""
    manifest: Manifest | None = None
    """What lists them; None: they were found in folders."""


def list_images(source: Path, order: str = "") -> Listing:
    """The images of a folder of class folders, of packed tars, or of a manifest.

    Args:
        source: the folder, or the manifest file.
        order: of the classes, as `classes.arranged` takes it; empty: the folders' names sorted as text.

    Raises:
        DataError: it holds no images, or other classes.
        ConfigError: an order given for something that has its own, or a list that cannot be read.
    """
    listed = arranged((), order, "--classes")  # a wrong list is told before images are looked for
    found = find_manifest(source)
    if source.is_dir() and not any(source.glob("*.tar")):
        found = None  # a folder's own manifest says nothing of files that came later, and may be damaged
    manifest = None if found is None else read_manifest(found)
    if manifest is None or (source.is_dir() and not manifest.shards):
        images = scan(source)
        images = reordered(images, listed or arranged(images.classes, order, "--classes"))
        return Listing(images, tuple(Place(images.path(index)) for index in range(len(images.files))))
    if is_remote(manifest.root):
        raise ConfigError(
            f"{found} lists images under {manifest.root}; allowed: local ones, before their upload"
        )
    if order:
        raise ConfigError(f"--classes with {source}, whose manifest has its own; allowed: with a folder")
    images = manifest.images()
    offsets = [each.offset if manifest.shards else -1 for each in manifest.records]
    places = tuple(
        Place(images.container(index), offset, each.bytes, each.sha256)
        for index, (each, offset) in enumerate(zip(manifest.records, offsets, strict=True))
    )
    return Listing(images, places, manifest)


def check(
    listing: Listing, *, journal: Path | None = None, advance: Callable[[int], object] = lambda count: None
) -> Check:
    """Decode every image.

    Args:
        listing: the images, from `list_images`.
        journal: a file that keeps what was found until it is deleted; an interrupted check goes on from it.
        advance: called with the number of images done since the last call.

    Raises:
        DataError: the journal cannot be written, or the system killed a worker process.
    """
    start, used = time.perf_counter(), time.process_time()
    with _Journal(journal, listing.images.root) as kept:
        findings = [kept.find(path, place) for path, place in _named(listing)]
        resumed = len(findings) - findings.count(None)
        advance(resumed)
        todo = [index for index, finding in enumerate(findings) if finding is None]
        tasks = (tuple(listing.places[index] for index in chunk) for chunk in chunks(todo, BATCH))
        with Workers(preload="fasttrain.pipelines.strict") as workers:
            for chunk, found in zip(chunks(todo, BATCH), workers.map(examine, tasks, _deadly), strict=True):
                for index, finding in zip(chunk, found, strict=True):
                    findings[index] = finding
                    kept.keep(listing.images.files[index], finding)
                kept.flush()
                advance(len(chunk))
            used = workers.cpu_seconds + time.process_time() - used
    seconds = time.perf_counter() - start
    messages = tuple(
        Fault(path, finding.message)
        for path, finding in zip(listing.images.files, findings, strict=True)
        if finding is not None and finding.message
    )
    return Check(_manifest(listing, findings), resumed, seconds, used / seconds, messages)


def _deadly(place: Place, death: Killed) -> Finding:
    return Finding(deadly(death))


def _named(listing: Listing) -> Iterator[tuple[str, Place]]:
    return zip(listing.images.files, listing.places, strict=True)


def _manifest(listing: Listing, findings: Sequence[Finding | None]) -> Manifest:
    images = listing.images
    records: list[Record] = []
    bad: list[Fault] = []
    for index, finding in enumerate(findings):
        assert finding is not None
        path = images.files[index]
        if finding.fault:
            bad.append(Fault(path, finding.fault))
            continue
        found = {name: getattr(finding, name) for name in _FOUND}
        if listing.manifest is not None:
            known = listing.manifest.records[index]
            found |= {"shard": known.shard, "offset": known.offset}
        records.append(Record(path=path, label=images.labels[index], **found))
    shards = () if listing.manifest is None else listing.manifest.shards
    return Manifest(images.root, images.classes, tuple(records), tuple(bad), shards)


def chunks(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """The items in tuples of `size`, the last one maybe shorter."""
    iterator = iter(items)
    while chunk := tuple(islice(iterator, size)):
        yield chunk


class _Journal:
    """Good images of an unfinished check, with the sizes and times that their files had when read."""

    def __init__(self, path: Path | None, root: str) -> None:
        self._path = path
        self._head = json.dumps({"fasttrain_check": _RULES, "root": os.path.abspath(root)}) + "\n"
        self._past: dict[str, tuple[list[int], Finding]] = {}
        self._stamps: dict[str, list[int]] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        if self._path is None:
            return self
        lines = [self._head]
        try:
            if self._path.exists():
                first, *rest = self._path.read_text().splitlines(keepends=True) or [""]
                lines += self._load(rest) if first == self._head else []
            # written anew: a process killed while it wrote may have left half a line
            self._file = self._path.open("w")
            self._file.writelines(lines)
            self._file.flush()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot keep the check's progress in {self._path}: {error}") from None
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def _load(self, lines: Iterable[str]) -> list[str]:
        whole: list[str] = []
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self._past[entry["path"]] = entry["stamp"], Finding(**entry["finding"])
                whole.append(line)
        return whole

    def find(self, path: str, place: Place) -> Finding | None:
        """What was found before, unless the file has changed since."""
        if self._file is None:
            return None
        try:
            status = os.stat(place.file)
        except OSError:
            return None
        # taken before the image is read: a change meanwhile shows the next time
        self._stamps[path] = stamp = [status.st_size, status.st_mtime_ns]
        past, finding = self._past.get(path, (None, None))
        if finding is None or past != stamp:
            return None
        return finding if place.sha256 in ("", finding.sha256) else None

    def keep(self, path: str, finding: Finding) -> None:
        if self._file is not None and path in self._stamps and not finding.fault:
            entry = {
                "path": path,
                "stamp": self._stamps[path],
                "finding": {name: getattr(finding, name) for name in _FOUND},
            }
            self._file.write(json.dumps(entry) + "\n")

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
