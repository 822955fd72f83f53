"""`fasttrain data pack`: validated images into shuffled tars in the WebDataset layout, with DALI's indexes.

A sample is two members, `<position>.<suffix>` (the image) and `<position>.cls` (its label in ASCII), numbered
over all tars. Beside each tar lies its index as DALI's wds2idx writes it, and `manifest.jsonl` tells where
each image is: training reads it at its offset, so that order and augmentation are those of the folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from PIL import Image

from fasttrain.errors import ConfigError, DataError
from fasttrain.randomness import Stream, generator

from .check import chunks
from .examine import Place, deadly
from .manifest import NAME, Manifest, Record
from .workers import Killed, Workers, uninterrupted

INDEX_VERSION = "v1.2"
"""Of DALI's index files: a line with it and the number of samples, then a line per sample."""

_CHUNK = 16
"""Images handed to a worker process at once."""


@dataclass(frozen=True, slots=True)
class Reencoding:
    """How large images are made smaller."""

    shorter: int
    """Shorter side, pixels; images whose shorter side is not longer stay as they are."""
    quality: int
    """Of the JPEG, 1 to 95."""


def pack(
    manifest: Manifest,
    target: Path,
    *,
    shards: int,
    seed: int,
    reencoding: Reencoding | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Manifest:
    """Write the images into tars under a new folder, which appears when all was read back and compared.

    Args:
        manifest: the images; what it leaves out is left out.
        target: a folder that does not exist or is empty.
        shards: number of tars; the images are dealt evenly.
        seed: of the shuffle.
        reencoding: None: the files' bytes as they are.
        advance: called with the number of images done since the last call, twice for each: written, compared.

    Returns:
        The manifest of the tars, in the order of the one given.

    Raises:
        ConfigError: more tars than images, or a target that is taken.
        DataError: an image has other bytes than the manifest says, or the tars cannot be written.
    """
    if not 1 <= shards <= len(manifest.records):
        raise ConfigError(f"--shards is {shards}; allowed: 1 to the {len(manifest.records)} images")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"-o is {target}, which holds something; allowed: a new folder")
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with uninterrupted():  # a folder whose name nobody knows would stay
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        with Workers(preload="fasttrain.pipelines.strict") as workers:
            packed = _write(manifest, temporary, shards, seed, reencoding, workers, advance)
            _compare(packed, workers, advance)
        packed.write(temporary / NAME)
        temporary.chmod(0o755)  # mkdtemp's are private
        os.rename(temporary, target)
    except OSError as error:
        raise DataError(f"cannot write the tars to {target}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return replace(packed, root=str(target))


def _write(
    manifest: Manifest,
    folder: Path,
    shards: int,
    seed: int,
    reencoding: Reencoding | None,
    workers: Workers,
    advance: Callable[[int], object],
) -> Manifest:
    order = generator(seed, Stream.PACKING).permutation(len(manifest.records))
    tasks = (tuple(_source(manifest, index) for index in chunk) for chunk in chunks(order.tolist(), _CHUNK))
    contents = (each for found in workers.map(partial(_load, reencoding), tasks, _refuse) for each in found)
    names = tuple(f"{number:05}.tar" for number in range(shards))
    packed: dict[int, Record] = {}
    position = 0
    for number, indices in enumerate(np.array_split(order, shards)):
        with _Tar(folder / names[number]) as tar:
            for index in indices.tolist():
                record, data = next(contents)
                offset = tar.add(position, record, data)
                packed[index] = replace(record, shard=number, offset=offset)
                position += 1
                advance(1)
    records = tuple(packed[index] for index in range(len(manifest.records)))
    return replace(manifest, root=str(folder), records=records, shards=names)


def _source(manifest: Manifest, index: int) -> tuple[Record, Place, str]:
    """A record, where its image is, and how messages call it."""
    record = manifest.records[index]
    offset = record.offset if manifest.shards else -1
    name = manifest.shards[record.shard] if manifest.shards else record.path
    file = os.path.join(manifest.root, name)
    label = f"{file}:{record.path}" if manifest.shards else file
    return record, Place(file, offset, record.bytes, record.sha256), label


def _load(
    reencoding: Reencoding | None, sources: Sequence[tuple[Record, Place, str]]
) -> list[tuple[Record, bytes]]:
    """Runs in a worker process."""
    return [_prepare(reencoding, *source) for source in sources]


def _prepare(reencoding: Reencoding | None, record: Record, place: Place, name: str) -> tuple[Record, bytes]:
    try:
        data = place.read()
    except OSError as error:
        raise DataError(f"image {name} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise DataError(f"image {name} {error}") from None
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise DataError(f"image {name} has other bytes than its manifest says; check the data again")
    # deeper pixels keep their levels
    deep = record.colour.startswith(("I", "F"))
    if reencoding is None or deep or min(record.width, record.height) <= reencoding.shorter:
        return record, data
    smaller = _smaller(data, reencoding.shorter, name)
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=reencoding.quality)  # as stored: without the EXIF orientation
    data = buffer.getvalue()
    width, height = smaller.size
    return replace(
        record,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        format="JPEG",
        width=width,
        height=height,
        colour="RGB",
        orientation=1,
    ), data


def _smaller(data: bytes, shorter: int, name: str) -> Image.Image:
    """What training sees of an image, with its shorter side made so long."""
    from .strict import strict_decoder  # for worker processes

    try:
        image = Image.fromarray(strict_decoder().pixels(data))
    except ValueError as error:
        raise DataError(f"image {name} {error}") from None
    scale = shorter / min(image.size)
    size = (round(scale * image.width), round(scale * image.height))
    return image.resize(size, Image.Resampling.BICUBIC)


class _Tar:
    """A tar and its index under way; a context manager that leaves both on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("xb")
        # old-style headers: one block each, since the names are short
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._lines: list[str] = []

    def __enter__(self) -> _Tar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._file:
            if kind is not None:
                return
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        head = f"{INDEX_VERSION} {len(self._lines)}\n"
        self._path.with_suffix(".idx").write_text(head + "".join(self._lines))

    def add(self, position: int, record: Record, data: bytes) -> int:
        """Append a sample.

        Returns:
            Where the image's first byte is.
        """
        suffix = "jpg" if record.format in ("JPEG", "MPO") else record.format.lower()
        image = self._member(f"{position:08}", suffix, data)
        label = self._member(f"{position:08}", "cls", str(record.label).encode())
        self._lines.append(f"{image[1]} {label[1]}\n")
        return image[0]

    def _member(self, stem: str, suffix: str, data: bytes) -> tuple[int, str]:
        """Offset of the data, and the entry of the index."""
        name = f"{stem}.{suffix}"
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._tar.addfile(info, io.BytesIO(data))
        blocks = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        offset = self._tar.offset - blocks
        return offset, f"{suffix} {offset} {len(data)} {name}"


def _compare(packed: Manifest, workers: Workers, advance: Callable[[int], object]) -> None:
    """Read every image back from the tars."""
    places = [(each.shard, each.offset) for each in packed.records]
    order = sorted(range(len(places)), key=places.__getitem__)
    tasks = (tuple(_source(packed, index) for index in chunk) for chunk in chunks(order, _CHUNK))
    for done in workers.map(_read_back, tasks, _refuse):
        advance(len(done))


def _read_back(sources: Sequence[tuple[Record, Place, str]]) -> list[None]:
    for source in sources:
        _prepare(None, *source)
    return [None] * len(sources)


def _refuse(source: tuple[Record, Place, str], death: Killed) -> NoReturn:
    raise DataError(f"image {source[2]} {deadly(death)}")
