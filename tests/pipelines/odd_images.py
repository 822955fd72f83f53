"""Images of odd kinds, each with the pixels that it holds, or with what `data check` has to say of it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Levels = NDArray[np.uint8]

ORIENTATION = 274
LOSSY = 14.0
"""Levels that a row of a lossy image may be from its picture on average."""


@dataclass(frozen=True, slots=True)
class Odd:
    """An encoded image."""

    data: bytes
    pixels: Levels | None = None
    """What it holds, RGB as stored; None: it is bad."""
    reason: str = ""
    """A pattern of what is said of a bad one."""
    near: float = 1.5
    """Levels that a row may be from the pixels on average."""


def picture() -> Image.Image:
    """97x61, no part of it like another one, turned or not."""
    y, x = np.mgrid[0:61, 0:97]
    waves = 40 * np.sin(x / 9) * np.cos(y / 7)
    levels = np.stack([40 + 2 * x + waves / 3, 220 - 3 * y + waves, 128 + waves + y - x / 2], axis=-1)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def odd_images() -> dict[str, Odd]:
    """By their file names, whose ends say little of what is in them."""
    return {f"{name}.jpg": image for part in _PARTS for name, image in part(picture())}


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rgb(image: Image.Image) -> Levels:
    return np.asarray(image.convert("RGB"))


def segments(jpeg: bytes) -> list[bytes]:
    """A JPEG's segments after its first marker; the last one holds the scans."""
    found, place = [], 2
    while jpeg[place + 1] != 0xDA:
        end = place + 2 + int(struct.unpack(">H", jpeg[place + 2 : place + 4])[0])
        found.append(jpeg[place:end])
        place = end
    return [*found, jpeg[place:]]


def without(jpeg: bytes, *markers: int) -> bytes:
    """A JPEG without some of its segments."""
    return b"\xff\xd8" + b"".join(part for part in segments(jpeg) if part[1] not in markers)


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return exif


DIFFERENT = "is decoded differently"


def jpegs(image: Image.Image) -> Iterator[tuple[str, Odd]]:
    pixels = rgb(image)
    plain = encoded(image, "JPEG", quality=95)
    cmyk = encoded(image.convert("CMYK"), "JPEG", quality=95)
    adobe = struct.pack(">HH5sHHHB", 0xFFEE, 14, b"Adobe", 100, 0, 0, 2)

    def good(data: bytes, levels: Levels = pixels) -> Odd:
        return Odd(data, levels, near=LOSSY)

    yield "jpeg", good(plain)
    yield "jpeg_grey", good(encoded(image.convert("L"), "JPEG"), rgb(image.convert("L")))
    yield "jpeg_progressive", good(encoded(image, "JPEG", quality=95, progressive=True))
    for sampling in ("4:4:4", "4:2:2", "4:1:1"):
        name = f"jpeg_{sampling.replace(':', '')}"
        yield name, good(encoded(image, "JPEG", quality=95, subsampling=sampling))
    yield "jpeg_restarts", good(encoded(image, "JPEG", quality=95, restart_marker_rows=1))
    yield "jpeg_rgb_components", good(encoded(image, "JPEG", quality=95, keep_rgb=True))
    yield "jpeg_without_jfif", good(without(plain, 0xE0))
    yield "jpeg_and_more", good(plain + bytes(2000))
    yield "jpeg_extraneous_bytes", good(plain[:-2] + bytes(1483) + plain[-2:])
    yield "jpeg_cmyk", good(cmyk)
    ycck = b"\xff\xd8" + adobe + without(cmyk, 0xEE)[2:]
    with Image.open(io.BytesIO(ycck)) as other:  # the same numbers as other colours
        yield "jpeg_ycck", good(ycck, rgb(other))
    yield "jpeg_cmyk_without_adobe", Odd(without(cmyk, 0xEE), reason=DIFFERENT)
    yield "jpeg_without_end", Odd(plain[:-2], reason="is truncated")
    yield "jpeg_half", Odd(plain[: len(plain) // 2], reason="is truncated|cannot be decoded")
    zeros = plain[: len(plain) // 2] + bytes(len(plain) // 2)
    yield "jpeg_half_zeros", Odd(zeros, reason="is truncated|is damaged")
    mpo = encoded(image, "MPO", quality=95, save_all=True, append_images=[image.rotate(180)])
    yield "jpeg_of_two", good(mpo)


def pngs(image: Image.Image) -> Iterator[tuple[str, Odd]]:
    pixels, grey = rgb(image), image.convert("L")
    alpha = Image.linear_gradient("L").resize(image.size)
    few = image.quantize(12)
    yield "png_rgba", Odd(encoded(Image.merge("RGBA", (*image.split(), alpha)), "PNG"), pixels)
    yield "png_la", Odd(encoded(Image.merge("LA", (grey, alpha)), "PNG"), rgb(grey))
    yield "png_transparent_colour", Odd(encoded(image, "PNG", transparency=(40, 220, 128)), pixels)
    yield "png_palette", Odd(encoded(few, "PNG"), rgb(few))
    yield "png_palette_4_bits", Odd(encoded(few, "PNG", bits=4), rgb(few))
    yield "png_palette_one_transparent", Odd(encoded(few, "PNG", transparency=3), rgb(few))
    yield "png_palette_alpha", Odd(encoded(few, "PNG", transparency=bytes(range(12))), rgb(few))
    yield "png_1_bit", Odd(encoded(image.convert("1"), "PNG"), rgb(image.convert("1")))
    deep = np.asarray(grey).astype(np.uint16) * 257
    yield "png_grey_16", Odd(encoded(Image.fromarray(deep), "PNG"), rgb(grey))
    yield "png_rgb_16", Odd(png_16(pixels), pixels)
    yield "png_rgba_16", Odd(png_16(np.dstack([pixels, np.asarray(alpha)])), pixels)
    other = image.rotate(180)
    yield "apng", Odd(encoded(image, "PNG", save_all=True, append_images=[other]), pixels)
    hidden = encoded(image, "PNG", save_all=True, default_image=True, append_images=[other, image])
    yield "apng_with_another_image", Odd(hidden, reason=DIFFERENT)
    whole = encoded(image, "PNG")
    yield "png_cut", Odd(whole[: len(whole) * 2 // 3], reason="cannot be decoded")


def png_16(levels: Levels) -> bytes:
    """16 bits, RGB or RGBA."""
    height, width, channels = levels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in levels.astype(">u2") * 257)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def others(image: Image.Image) -> Iterator[tuple[str, Odd]]:
    pixels, grey, few = rgb(image), image.convert("L"), image.quantize(200)
    alpha = Image.merge("RGBA", (*image.split(), Image.linear_gradient("L").resize(image.size)))
    yield "webp", Odd(encoded(image, "WEBP", quality=95), pixels, near=LOSSY)
    yield "webp_alpha", Odd(encoded(alpha, "WEBP", lossless=True, exact=True), pixels)
    animated = encoded(image, "WEBP", lossless=True, save_all=True, append_images=[image.rotate(180)])
    yield "webp_animated", Odd(animated, pixels)
    yield "bmp", Odd(encoded(image, "BMP"), pixels)
    yield "bmp_palette", Odd(encoded(few, "BMP"), rgb(few))
    yield "bmp_1_bit", Odd(encoded(image.convert("1"), "BMP"), rgb(image.convert("1")))
    yield "bmp_32_bits", Odd(encoded(alpha, "BMP"), pixels)
    upside = bytearray(encoded(Image.fromarray(pixels[::-1]), "BMP"))
    upside[22:26] = struct.pack("<i", -image.height)
    yield "bmp_from_the_top", Odd(bytes(upside), pixels)
    yield "jp2", Odd(encoded(image, "JPEG2000"), pixels)
    yield "jp2_grey", Odd(encoded(grey, "JPEG2000"), rgb(grey))
    yield "jp2_alpha", Odd(encoded(alpha, "JPEG2000"), pixels)
    yield "jp2_tiles", Odd(encoded(image, "JPEG2000", tile_size=(32, 32)), pixels)
    yield "j2k", Odd(encoded(image, "JPEG2000", no_jp2=True), pixels)
    yield "ppm", Odd(encoded(image, "PPM"), pixels)
    yield "pgm", Odd(encoded(grey, "PPM"), rgb(grey))
    yield "pgm_65535", Odd(pnm(np.asarray(grey), 65535), rgb(grey))
    yield "pbm", Odd(encoded(image.convert("1"), "PPM"), rgb(image.convert("1")))
    yield (
        "ppm_text",
        Odd(b"P3 97 61 255\n" + b" ".join(b"%d" % level for level in pixels.ravel()) + b"\n", pixels),
    )
    yield "ppm_65535", Odd(pnm(pixels, 65535), pixels)
    for largest in (100, 1023):
        yield f"ppm_{largest}", Odd(pnm(pixels, largest), reason=DIFFERENT)
    yield "pgm_31", Odd(pnm(np.asarray(grey), 31), reason=DIFFERENT)
    yield "gif", Odd(encoded(image, "GIF"), reason="is a GIF image")
    yield "avif", Odd(encoded(image, "AVIF"), reason="is a AVIF image")


def pnm(levels: Levels, largest: int) -> bytes:
    """A PNM whose levels go to another largest value than 255."""
    kind = 6 if levels.ndim == 3 else 5
    values = (levels.astype(np.int64) * largest // 255).astype(">u2" if largest > 255 else np.uint8)
    return b"P%d %d %d %d\n" % (kind, levels.shape[1], levels.shape[0], largest) + values.tobytes()


def tiffs(image: Image.Image) -> Iterator[tuple[str, Odd]]:
    pixels, grey, few = rgb(image), image.convert("L"), image.quantize(100)
    bits = image.convert("1")
    levels = np.asarray(grey)
    yield "tiff", Odd(encoded(image, "TIFF"), pixels)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        yield f"tiff_by_{compression}", Odd(encoded(image, "TIFF", compression=compression), pixels)
    yield "tiff_jpeg", Odd(encoded(image, "TIFF", compression="jpeg", quality=95), pixels, near=LOSSY)
    yield "tiff_rgba", Odd(encoded(image.convert("RGBA"), "TIFF"), pixels)
    yield "tiff_cmyk", Odd(encoded(image.convert("CMYK"), "TIFF"), pixels)
    yield "tiff_palette", Odd(encoded(few, "TIFF"), rgb(few))
    yield "tiff_fax", Odd(encoded(bits, "TIFF", compression="group4"), rgb(bits))
    yield "tiff_1_bit", Odd(encoded(bits, "TIFF"), reason="cannot be decoded")
    yield "tiff_grey_16", Odd(encoded(Image.fromarray(levels.astype(np.uint16) * 257), "TIFF"), rgb(grey))
    unit = Image.fromarray(levels.astype(np.float32) / 255)
    yield "tiff_float", Odd(encoded(unit, "TIFF"), rgb(grey))
    large = Image.fromarray(levels.astype(np.float32))
    yield "tiff_float_to_255", Odd(encoded(large, "TIFF"), reason="has float pixels from .* allowed: 0 to 1")
    missing = Image.fromarray(np.where(levels > 99, np.float32(np.nan), levels / np.float32(255)))
    yield "tiff_float_nan", Odd(encoded(missing, "TIFF"), reason="has float pixels .* allowed: 0 to 1")
    yield "tiff_integers", Odd(encoded(Image.fromarray(levels.astype(np.int32)), "TIFF"), reason=".")
    yield "tiff_la", Odd(encoded(image.convert("LA"), "TIFF"), reason=DIFFERENT)
    yield "tiff_lab", Odd(encoded(image.convert("LAB"), "TIFF"), reason=DIFFERENT)
    yield "tiff_palette_alpha", Odd(palette_alpha_tiff(few), reason=DIFFERENT)
    yield "tiff_planes", Odd(tiff(pixels, planes=True), pixels)
    yield "tiff_16", Odd(tiff(pixels.astype(np.uint16) * 257), pixels)
    yield "tiff_planes_16", Odd(tiff(pixels.astype(np.uint16) * 257, planes=True), reason=DIFFERENT)
    halves = np.dstack([pixels // 2, np.full_like(levels, 128)])
    yield "tiff_multiplied_by_alpha", Odd(tiff(halves, more={338: 1}), reason=DIFFERENT)
    more = {338: 2}
    yield "tiff_rgba_16", Odd(tiff(halves.astype(np.uint16) * 257, more=more), rgb(Image.fromarray(halves)))
    planes = tiff(halves.astype(np.uint16) * 257, planes=True, more=more)
    yield "tiff_rgba_planes_16", Odd(planes, reason=DIFFERENT)
    yield "tiff_white_is_0", Odd(tiff(255 - levels[..., None], more={262: 0}), rgb(grey))
    cmyk = tiff(np.asarray(image.convert("CMYK")), planes=True, more={262: 5})
    yield "tiff_cmyk_planes", Odd(cmyk, pixels)
    backwards = np.packbits(np.unpackbits(pixels[..., None], axis=-1), axis=-1, bitorder="little")[..., 0]
    yield "tiff_bits_backwards", Odd(tiff(backwards, more={266: 2}), pixels)
    pages = encoded(image, "TIFF", save_all=True, append_images=[image.rotate(180)])
    yield "tiff_pages", Odd(pages, pixels)


def tiff(values: NDArray[Any], planes: bool = False, more: dict[int, int] | None = None) -> bytes:
    """An uncompressed TIFF, 8 or 16 bits, [H, W, channels], its planes mixed or one after the other."""
    height, width, channels = values.shape
    parts = [values[..., channel] for channel in range(channels)] if planes else [values]
    strips = [np.ascontiguousarray(part).astype(values.dtype.newbyteorder("<")).tobytes() for part in parts]
    fields: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [8 * values.itemsize] * channels,
        259: [1],
        262: [2],
        273: [0] * len(strips),
        277: [channels],
        278: [height],
        279: [len(strip) for strip in strips],
        284: [2 if planes else 1],
    } | {tag: [value] for tag, value in (more or {}).items()}
    first = 8 + 2 + 12 * len(fields) + 4
    size = sum(_SIZES[_kind(tag)] * len(each) for tag, each in fields.items() if len(each) > 1)
    starts = np.cumsum([first + size, *(len(strip) for strip in strips)])
    fields[273] = starts[:-1].tolist()
    entries, tables = b"", b""
    for tag, each in sorted(fields.items()):
        kind = _kind(tag)
        where = each[0] if len(each) == 1 else first + len(tables)
        entries += struct.pack("<HHII", tag, kind, len(each), where)
        if len(each) > 1:
            tables += struct.pack(f"<{len(each)}{'H' if kind == 3 else 'I'}", *each)
    return struct.pack("<2sHIH", b"II", 42, 8, len(fields)) + entries + bytes(4) + tables + b"".join(strips)


_SIZES = {3: 2, 4: 4}  # bytes of TIFF's kinds of numbers


def _kind(tag: int) -> int:
    return 4 if tag in (256, 257, 273, 278, 279) else 3


def palette_alpha_tiff(image: Image.Image) -> bytes:
    """Two samples for each pixel: an index into the palette, and alpha."""
    pairs = Image.new("PA", image.size)
    pairs.putpalette(image.getpalette() or [])
    pairs.putdata([(int(index), 255) for index in np.asarray(image).ravel()])
    return encoded(pairs, "TIFF")


def turned_ones(image: Image.Image) -> Iterator[tuple[str, Odd]]:
    """Orientations in EXIF and TIFF tags: pixels are those stored, or the file is refused."""
    pixels, grey, exif = rgb(image), image.convert("L"), turned(6)
    cmyk, bits = image.convert("CMYK"), image.convert("1")
    yield "turned_jpeg", Odd(encoded(image, "JPEG", quality=95, exif=exif), pixels, near=LOSSY)
    yield "turned_jpeg_grey", Odd(encoded(grey, "JPEG", quality=95, exif=exif), rgb(grey), near=LOSSY)
    yield "turned_jpeg_cmyk", Odd(encoded(cmyk, "JPEG", quality=95, exif=exif), pixels, near=LOSSY)
    yield "turned_mpo", Odd(encoded(image, "MPO", quality=95, exif=exif), pixels, near=LOSSY)
    yield "turned_png", Odd(encoded(image, "PNG", exif=exif), pixels)
    yield "turned_png_palette", Odd(encoded(image.quantize(9), "PNG", exif=exif), rgb(image.quantize(9)))
    yield "turned_webp", Odd(encoded(image, "WEBP", quality=95, exif=exif), pixels, near=LOSSY)
    yield (
        "turned_webp_lossless",
        Odd(encoded(image, "WEBP", lossless=True, exif=exif), reason="cannot be decoded"),
    )
    yield "turned_avif", Odd(encoded(image, "AVIF", exif=exif), reason="is a AVIF image")
    for number in range(2, 9):
        tag = {ORIENTATION: number}
        yield f"turned_tiff_{number}", Odd(encoded(image, "TIFF", tiffinfo=tag), pixels)
    tag = {ORIENTATION: 6}
    for compression in ("tiff_lzw", "tiff_deflate"):
        data = encoded(image, "TIFF", compression=compression, tiffinfo=tag)
        yield f"turned_tiff_by_{compression}", Odd(data, pixels)
    data = encoded(image.convert("YCbCr"), "TIFF", compression="jpeg", quality=95, tiffinfo=tag)
    yield "turned_tiff_jpeg", Odd(data, pixels, near=LOSSY)
    yield "turned_tiff_grey", Odd(encoded(grey, "TIFF", tiffinfo=tag), rgb(grey))
    yield "turned_tiff_16", Odd(tiff(pixels.astype(np.uint16) * 257, more=tag), pixels)
    few = image.quantize(100)
    yield "turned_tiff_palette", Odd(encoded(few, "TIFF", tiffinfo=tag), rgb(few))
    cannot = r"is a TIFF that its orientation tag \(\d\) turns, of a kind that cannot be decoded as stored"
    for number in (5, 6, 7, 8):
        tag = {ORIENTATION: number}
        yield f"turned_tiff_cmyk_{number}", Odd(encoded(cmyk, "TIFF", tiffinfo=tag), reason=cannot)
    yield "turned_tiff_lab", Odd(encoded(image.convert("LAB"), "TIFF", tiffinfo=tag), reason=cannot)
    fax = encoded(bits, "TIFF", compression="group4", tiffinfo=tag)
    yield "turned_tiff_fax", Odd(fax, reason=cannot)
    yield "turned_tiff_planes", Odd(tiff(pixels, planes=True, more=tag), reason=cannot)
    white = tiff(255 - np.asarray(grey)[..., None], more=tag | {262: 0})
    yield "turned_tiff_white_is_0", Odd(white, reason=cannot)
    yield "turned_tiff_la", Odd(encoded(image.convert("LA"), "TIFF", tiffinfo=tag), reason=DIFFERENT)
    yield "turned_tiff_cmyk_3", Odd(encoded(cmyk, "TIFF", tiffinfo={ORIENTATION: 3}), reason=DIFFERENT)


_PARTS = (jpegs, pngs, others, tiffs, turned_ones)
