"""Whether an image can be decoded, and what it is: by Pillow and by DALI's decoder, which training uses.

For worker processes: the decoder takes their standard error over. Only there is DALI imported.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from PIL import Image, UnidentifiedImageError

from fasttrain.errors import DataError

from .folder import ImageFolder, is_remote
from .reference import (
    UnfitPixelsError,
    cannot_be_stored,
    is_plain,
    opened,
    orientation,
    stored_pixels,
    stored_size,
)
from .workers import Killed

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
"""What training decodes, by Pillow's names. MPO is a JPEG with more images after it."""
UNDECODABLE = "cannot be decoded: it is damaged or no image"
BATCH = 16
"""Images to examine at once: enough to make the hand-over cheap, few enough to see progress."""
_PIXELS = 50_000_000
"""Decoded at once at most, unless one image has more."""

_DEADLY = (".tif", ".tiff")
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
    """What was found out about one image; the fields after `message` are `manifest.Record`'s."""

    fault: str = ""
    """What is wrong, to be read after the image's path; empty: nothing."""
    message: str = ""
    """What the decoder writes in training each time it decodes the image, without a name; empty: nothing."""
    bytes: int = 0
    sha256: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    colour: str = ""
    orientation: int = 1


def deadly(death: Killed) -> str:
    """What is wrong with an image that ends the process which decodes it."""
    return f"cannot be decoded: the process that tried it {death}"


def refuse_deadly(images: ImageFolder) -> None:
    """Look into the TIFFs, which alone can end the process that decodes them; those in tars were checked.

    Raises:
        DataError: one would (see `reference.cannot_be_stored`).
    """
    if images.members is not None or is_remote(images.root):
        return
    for index, name in enumerate(images.files):
        fault = _deadly_header(images.path(index)) if name.lower().endswith(_DEADLY) else ""
        if fault:
            raise DataError(f"image {images.path(index)} {fault}; mend or remove it")


def _deadly_header(path: str) -> str:
    try:
        with opened(path) as image:
            return cannot_be_stored(image)
    except Exception:  # no image, or a damaged one: it fails when it is decoded, and is named then
        return ""


def examine(places: Sequence[Place]) -> list[Finding]:
    """Read and decode up to `BATCH` images.

    Plain JPEGs and PNGs are decoded whole, many at once: DALI and Pillow decode them by the same library. All
    others are decoded as training does, whole and by a window, each twice, and compared with Pillow's pixels
    (see `reference`).
    """
    from .strict import strict_decoder

    contents, findings, plain = map(list, zip(*map(_look, places), strict=True))
    for group in _groups(findings, plain):
        verdicts = strict_decoder().judge([contents[index] for index in group])
        for index, verdict in zip(group, verdicts, strict=True):
            findings[index] = _judged(findings[index], *verdict)
    for index, data in enumerate(contents):
        if not (findings[index].fault or plain[index]):
            findings[index] = _compared(data, findings[index])
    return findings


def _judged(finding: Finding, fault: str, message: str) -> Finding:
    return Finding(fault) if fault else replace(finding, message=message)


def _compared(data: bytes, finding: Finding) -> Finding:
    """The finding about an image that is not plain, with DALI's pixels held against Pillow's."""
    from .strict import strict_decoder

    try:
        expected = stored_pixels(data)
    except UnfitPixelsError as error:
        return Finding(str(error))
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        return Finding(f"cannot be decoded: {error}")
    return _judged(finding, *strict_decoder().compare(data, expected))


def _groups(findings: Sequence[Finding], plain: Sequence[bool]) -> Iterator[list[int]]:
    """The indices of plain images without a fault, cut so that few large ones are decoded at once."""
    group: list[int] = []
    pixels = 0
    for index, finding in enumerate(findings):
        if finding.fault or not plain[index]:
            continue
        size = finding.width * finding.height
        if group and pixels + size > _PIXELS:
            yield group
            group, pixels = [], 0
        group.append(index)
        pixels += size
    if group:
        yield group


def _look(place: Place) -> tuple[bytes, Finding, bool]:
    """An image's bytes, what is known before DALI has decoded it, and whether it is plain."""
    try:
        data = place.read()
    except OSError as error:
        tar = f" in {place.file}" if place.offset >= 0 else ""
        return b"", Finding(f"cannot be read{tar}: {(error.strerror or str(error)).lower()}"), False
    except ValueError as error:
        return b"", Finding(str(error)), False
    if not data:
        return data, Finding("is empty"), False
    digest = hashlib.sha256(data).hexdigest()
    if place.sha256 not in ("", digest):
        return data, Finding("has other bytes than its manifest says"), False
    return data, *_describe(data, digest)


def _describe(data: bytes, digest: str) -> tuple[Finding, bool]:
    try:
        with opened(data) as image:
            if image.format not in FORMATS:
                return Finding(f"is a {image.format} image; allowed: {', '.join(FORMATS)}"), False
            fault = cannot_be_stored(image)
            if fault:
                return Finding(fault), False
            size, turned, plain = stored_size(image), orientation(image), is_plain(image, data)
            if plain and image.format == "PNG":
                image.load()  # DALI's decoder lets truncated ones pass
            return Finding("", "", len(data), digest, image.format, *size, image.mode, turned), plain
    except UnidentifiedImageError:
        return Finding("is no image"), False
    except Image.DecompressionBombError as error:
        return Finding(f"is too large: {error}"), False
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        return Finding(f"cannot be decoded: {error}"), False
