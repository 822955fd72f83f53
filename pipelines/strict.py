"""A decoder that tells of damage which stops none: in the middle of a JPEG, libjpeg only writes a warning.

For processes of its own: it takes standard error over, where DALI's libraries write.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, types

from .examine import BATCH

# libjpeg's warnings that mean lost image data; others are about odd but harmless headers
_DAMAGE = re.compile(r"Corrupt JPEG data: (?!bad ICC)(.*)|(Premature end of JPEG)")


class StrictDecoder:
    """DALI's decoder in a process whose standard error nobody else reads."""

    def __init__(self) -> None:
        """Take standard error over."""
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process runs)
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
        self._messages.seek(0)
        self._messages.truncate()
        self._images = [np.frombuffer(image, np.uint8) for image in images]
        fault = ""
        try:
            self._built().run()
        except RuntimeError:
            fault = "cannot be decoded: it is damaged or no image"
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
                pipeline.set_outputs(fn.decoders.image(source, device="cpu", adjust_orientation=False))
            self._pipeline = pipeline
        return self._pipeline


@cache
def strict_decoder() -> StrictDecoder:
    """The process's own."""
    return StrictDecoder()
