"""A decoder that tells what training would not: damage that stops no decoder, and pixels of another image.

In the middle of a JPEG, libjpeg only writes a warning. For processes of its own: it takes standard error,
where DALI's libraries write, over.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from fasttrain.config import Data

from .decoding import decode, shapes
from .examine import BATCH, UNDECODABLE
from .reference import TOLERANCE, apart

# libjpeg's warnings that mean lost image data; others are about odd but harmless headers, and bytes between
# the last block and the end change no pixel
_DAMAGE = re.compile(
    r"Corrupt JPEG data: (?!bad ICC|\d+ extraneous bytes before marker 0xd9)(.*)"
    r"|(Premature end of JPEG|Input file read error)"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Window = tuple[tuple[int, int], tuple[int, int]]
"""Corner (top, left) and size (height, width)."""

_UNKNOWN = "cannot be decoded by DALI, which training uses; Pillow decodes it"
_DIFFERENTLY = "is decoded differently by DALI, which training uses, and by Pillow"


class Verdict(NamedTuple):
    """What a decoder has to say of an image."""

    fault: str = ""
    """What is wrong, to be read after the image's path; empty: nothing."""
    message: str = ""
    """What it writes in training each time it decodes the image, without the image's name; empty: nothing."""


class StrictDecoder:
    """DALI's decoder in a process whose standard error nobody else reads."""

    def __init__(self) -> None:
        """Take standard error over."""
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process runs)
        os.dup2(self._messages.fileno(), 2)
        self._whole = _Decoding(windows=False)
        self._as_training = _Decoding(windows=True)

    def judge(self, images: Sequence[bytes]) -> list[Verdict]:
        """What is to be said of each image, decoded whole."""
        together = self._decode(self._whole, images)[0]
        if together == Verdict() or len(images) == 1:
            return [together] * len(images)
        return [self._decode(self._whole, [image])[0] for image in images]

    def compare(self, image: bytes, expected: NDArray[np.uint8]) -> Verdict:
        """What is to be said of an image of these pixels, decoded as training does: whole and by a window."""
        height, width = expected.shape[:2]
        size = ((height + 1) // 2, (width + 1) // 2)
        window = ((height - size[0]) // 2, (width - size[1]) // 2), size
        verdict, outputs = self._decode(self._as_training, [image, image], window)
        if not verdict.fault:
            return verdict._replace(fault=_difference(outputs, expected, window))
        return verdict._replace(fault=_UNKNOWN) if verdict.fault == UNDECODABLE else verdict

    def pixels(self, image: bytes) -> NDArray[np.uint8]:
        """The image as training sees it, [H, W, 3].

        Raises:
            ValueError: it cannot be decoded; the message is to be read after the image's path.
        """
        verdict, outputs = self._decode(self._whole, [image])
        if verdict.fault:
            raise ValueError(verdict.fault)
        return np.array(outputs[0][0])

    def _decode(
        self, decoding: _Decoding, images: Sequence[bytes], window: Window | None = None
    ) -> tuple[Verdict, Sequence[Any]]:
        """What is to be said of the images together, and the decoder's outputs."""
        self._messages.seek(0)
        self._messages.truncate()
        fault: str = ""
        outputs: Sequence[Any] = ()
        try:
            outputs = decoding.run(images, window)
        except RuntimeError:
            fault = UNDECODABLE
        self._messages.seek(0)
        written = _COLOUR.sub("", self._messages.read().decode(errors="replace")).strip()
        damage = _DAMAGE.search(written)
        if damage is not None:
            fault = f"is damaged: {damage[1].strip()}" if damage[1] else "is truncated"
        return Verdict(fault, written.split("\n", 1)[0]), outputs


class _Decoding:
    """A pipeline of training's decoders: of whole images, or of whole ones, a window and shapes."""

    def __init__(self, windows: bool) -> None:
        self._windows = windows
        self._inputs: tuple[list[NDArray[Any]], ...] = ()
        self._pipeline: Pipeline | None = None

    def run(self, images: Sequence[bytes], window: Window | None) -> Sequence[Any]:
        """DALI's outputs, which the next run writes over.

        Raises:
            RuntimeError: an image cannot be decoded.
        """
        self._inputs = ([np.frombuffer(image, np.uint8) for image in images],)
        if window is not None:
            self._inputs += tuple([np.array(each, np.int32)] * len(images) for each in window)
        pipeline = self._pipeline or self._built()
        self._pipeline = None  # one that has failed does not run again
        outputs: Sequence[Any] = pipeline.run()
        self._pipeline = pipeline
        return outputs

    def _built(self) -> Pipeline:
        data = Data()
        kinds = [types.DALIDataType.UINT8, *[types.DALIDataType.INT32] * (2 if self._windows else 0)]
        pipeline = Pipeline(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
        with pipeline:
            encoded, *window = fn.external_source(
                lambda: self._inputs, num_outputs=len(kinds), batch=True, dtype=kinds, ndim=1
            )
            outputs = [decode(encoded, data)]
            if self._windows:
                outputs += [decode(encoded, data, window=tuple(window)), shapes(encoded)]
            pipeline.set_outputs(*outputs)
        return pipeline


def _difference(outputs: Sequence[Any], expected: NDArray[np.uint8], window: Window) -> str:
    """How two decodings of an image differ, or how they differ from what is expected; empty: they do not."""
    (whole, again), (part, part_again), (shape, _) = (
        [np.array(each) for each in output] for output in outputs
    )
    height, width = expected.shape[:2]
    if whole.shape != expected.shape or tuple(shape[:2]) != (height, width):
        return f"{_DIFFERENTLY}: {whole.shape[1]}x{whole.shape[0]} and {width}x{height}"
    if not (np.array_equal(whole, again) and np.array_equal(part, part_again)):
        return "is decoded differently each time"
    (top, left), (rows, columns) = window
    levels = max(apart(whole, expected), apart(part, expected[top : top + rows, left : left + columns]))
    return "" if levels <= TOLERANCE else f"{_DIFFERENTLY}: by {levels:.0f} of 255 levels on average in a row"


@cache
def strict_decoder() -> StrictDecoder:
    """The process's own."""
    return StrictDecoder()
