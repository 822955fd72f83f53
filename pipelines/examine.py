"""Whether an image can be decoded, and what it is: by DALI's decoder, which training uses, and Pillow.

Runs in worker processes, whose standard error it takes over: damage in the middle of a JPEG stops no decoder,
but libjpeg writes a warning there.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, types
from PIL import Image, UnidentifiedImageError

from .graphs import decode

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
"""What training decodes, by Pillow's names. MPO is a JPEG with more images after it."""
BATCH = 16
"""Images examined at once at most."""

_ORIENTATION = 0x0112  # the EXIF tag
_HEADER = tarfile.BLOCKSIZE
# libjpeg's warnings that mean lost image data; others are about odd but harmless headers
_DAMAGE = re.compile(r"Corrupt JPEG data: (?!bad ICC)(.*)|(Premature end of JPEG file)")
_UNDECODABLE = "cannot be decoded: it is damaged or no image"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an encoded image is, and what is known of it."""

    file: str
    """The file, or the tar that holds it."""
    offset: int = -1
    """The first byte in the tar; -1: the file is the image."""
    size: int = -1
    """Bytes; -1: unknown."""
    sha256: str = ""
    """Hexadecimal; empty: unknown."""

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            OSError: the file cannot be read.
            ValueError: its tar does not hold it there.
        """
        with open(self.file, "rb") as file:
            if self.offset < 0:
                return file.read()
            file.seek(self.offset - _HEADER)
            header, contents = file.read(_HEADER), file.read(self.size)
        try:
            size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        except tarfile.HeaderError as error:
            raise ValueError(f"has no header in its tar ({error})") from None
        if size != self.size or len(contents) < size:
            raise ValueError(f"has {min(size, len(contents))} bytes in its tar, not {self.size}")
        return contents


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one image; the fields after `fault` are `manifest.Record`'s."""

    fault: str = ""
    """What is wrong, to be read after the image's path; empty: nothing."""
    bytes: int = 0
    sha256: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    colour: str = ""
    orientation: int = 1


def examine(places: Sequence[Place]) -> list[Finding]:
    """Read and decode up to `BATCH` images."""
    contents: list[bytes] = []
    findings: list[Finding] = []
    for place in places:
        data, finding = _look(place)
        contents.append(data)
        findings.append(finding)
    good = [index for index, finding in enumerate(findings) if not finding.fault]
    faults = _decoder().faults([contents[index] for index in good])
    for index, fault in zip(good, faults, strict=True):
        if fault:
            findings[index] = Finding(fault)
    return findings


def _look(place: Place) -> tuple[bytes, Finding]:
    """An image's bytes, and what is known before DALI has decoded it."""
    try:
        data = place.read()
    except OSError as error:
        return b"", Finding(f"cannot be read: {(error.strerror or str(error)).lower()}")
    except ValueError as error:
        return b"", Finding(str(error))
    if not data:
        return data, Finding("is empty")
    digest = hashlib.sha256(data).hexdigest()
    if place.sha256 not in ("", digest):
        return data, Finding("has other bytes than its manifest says")
    return data, _describe(data, digest)


def _describe(data: bytes, digest: str) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd headers, and of sizes that are no danger here
            with Image.open(io.BytesIO(data)) as image:
                if image.format not in FORMATS:
                    return Finding(f"is a {image.format} image; allowed: {', '.join(FORMATS)}")
                if image.format not in ("JPEG", "MPO"):
                    image.load()  # some decoders of other formats let truncated files pass
                width, height = image.size
                return Finding(
                    "", len(data), digest, image.format, width, height, image.mode, _orientation(image)
                )
    except UnidentifiedImageError:
        return Finding("is no image")
    except Image.DecompressionBombError as error:
        return Finding(f"is too large: {error}")
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        return Finding(f"{_UNDECODABLE} ({error})")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data does no harm to the image
        return 1
    return value if value in range(1, 9) else 1


class _Decoder:
    """DALI's decoder in a process whose standard error nobody else reads."""

    def __init__(self) -> None:
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115: as long as the process
        os.dup2(self._messages.fileno(), 2)
        self._images: list[np.ndarray[Any, Any]] = []
        self._pipeline: Pipeline | None = None

    def faults(self, images: Sequence[bytes]) -> list[str]:
        """What is wrong with each, or empty strings."""
        together = self._fault(images)
        if not together:
            return [""] * len(images)
        return [self._fault([image]) for image in images] if len(images) > 1 else [together]

    def _fault(self, images: Sequence[bytes]) -> str:
        if not images:
            return ""
        self._messages.seek(0)
        self._messages.truncate()
        self._images = [np.frombuffer(image, np.uint8) for image in images]
        fault = ""
        try:
            self._built().run()
        except RuntimeError:
            fault = _UNDECODABLE
            self._pipeline = None  # it does not run again
        self._messages.seek(0)
        damage = _DAMAGE.search(self._messages.read().decode(errors="replace"))
        if damage is None:
            return fault
        return f"is damaged: {damage[1].strip()}" if damage[1] else "is truncated"

    def _built(self) -> Pipeline:
        if self._pipeline is None:
            pipeline = Pipeline(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
            with pipeline:
                source = fn.external_source(
                    lambda: self._images, batch=True, dtype=types.DALIDataType.UINT8, ndim=1
                )
                pipeline.set_outputs(decode(source))
            self._pipeline = pipeline
        return self._pipeline


@cache
def _decoder() -> _Decoder:
    return _Decoder()
