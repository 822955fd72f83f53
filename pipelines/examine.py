"""Whether an image can be decoded, and what it is: by Pillow and by DALI's decoder, which training uses.

For worker processes: the decoder takes their standard error over. Only there is DALI imported.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
"""What training decodes, by Pillow's names. MPO is a JPEG with more images after it."""
BATCH = 16
"""Images to examine at once: enough to make the hand-over cheap, few enough to see progress."""
_PIXELS = 50_000_000
"""Decoded at once at most, unless one image has more."""

_ORIENTATION = 0x0112  # the EXIF tag
_HEADER = tarfile.BLOCKSIZE


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
            raise ValueError(f"has no header in its tar, {self.file} ({error})") from None
        if size != self.size:
            raise ValueError(f"has {size} bytes in its tar, {self.file}, not {self.size}")
        if len(contents) < size:
            raise ValueError(f"is not whole: its tar, {self.file}, ends before it does")
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
    from .strict import strict_decoder

    contents: list[bytes] = []
    findings: list[Finding] = []
    for place in places:
        data, finding = _look(place)
        contents.append(data)
        findings.append(finding)
    for group in _groups(findings):
        faults = strict_decoder().faults([contents[index] for index in group])
        for index, fault in zip(group, faults, strict=True):
            if fault:
                findings[index] = Finding(fault)
    return findings


def _groups(findings: Sequence[Finding]) -> Iterator[list[int]]:
    """The good images' indices, cut so that few large images are decoded at once."""
    group: list[int] = []
    pixels = 0
    for index, finding in enumerate(findings):
        if finding.fault:
            continue
        size = finding.width * finding.height
        if group and pixels + size > _PIXELS:
            yield group
            group, pixels = [], 0
        group.append(index)
        pixels += size
    if group:
        yield group


def _look(place: Place) -> tuple[bytes, Finding]:
    """An image's bytes, and what is known before DALI has decoded it."""
    try:
        data = place.read()
    except OSError as error:
        tar = f" in {place.file}" if place.offset >= 0 else ""
        return b"", Finding(f"cannot be read{tar}: {(error.strerror or str(error)).lower()}")
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
        return Finding(f"cannot be decoded: {error}")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data does no harm to the image
        return 1
    return value if value in range(1, 9) else 1
