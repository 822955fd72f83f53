"""A DALI pipeline as a stream of numbered runs, each a pure function of its number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.pipeline import do_not_convert

from fasttrain.errors import ImageError

from .decode_check import find_undecodable
from .folder import ImageFolder
from .sources import Source, source_of

Graph = Callable[[Mapping[str, Any]], Sequence[Any]]
"""DALI nodes of the outputs from those of the inputs."""

_DALI_TYPES = {
    np.dtype(np.uint8): types.DALIDataType.UINT8,
    np.dtype(np.int32): types.DALIDataType.INT32,
    np.dtype(np.int64): types.DALIDataType.INT64,
    np.dtype(np.float32): types.DALIDataType.FLOAT,
}


@dataclass(frozen=True, slots=True)
class Feed:
    """What one run takes in: B images by their index, int64 [B], and B rows of each array."""

    images: NDArray[np.int64]
    arrays: dict[str, NDArray[Any]]
    crops: NDArray[Any] | None = None
    """The array that gives the windows by which images are decoded; None: they are decoded whole."""


class _Calls:
    """Answers DALI's calls, which are numbered from 0, with the feeds of the runs from `first` on."""

    def __init__(self, source: Source, feed: Callable[[int], Feed], first: int) -> None:
        self.source = source
        self.feed = feed
        self.first = first
        self.end = first

    def __call__(self, call: int) -> tuple[Any, ...]:
        run = self.first + call
        self.end = run + 1
        feed = self.feed(run)
        return (self.source.locate(feed.images), *feed.arrays.values())


@do_not_convert
def _inputs(calls: _Calls, sample: Feed) -> dict[str, Any]:
    """The graph's inputs by name, typed like the sample."""
    arrays = sample.arrays.values()
    where = calls.source.locate(sample.images)
    where_node, *nodes = fn.external_source(
        calls,
        num_outputs=1 + len(arrays),
        batch=True,
        dtype=[_DALI_TYPES[where.dtype], *(_DALI_TYPES[array.dtype] for array in arrays)],
        ndim=[where.ndim - 1, *(array.ndim - 1 for array in arrays)],
    )
    return {"encoded": calls.source.read(where_node), **dict(zip(sample.arrays, nodes, strict=True))}


class Stream:
    """Runs of one graph in the order asked for; consecutive runs stay prefetched, a jump builds anew."""

    def __init__(
        self,
        folder: ImageFolder,
        feed: Callable[[int], Feed],
        graph: Graph,
        *,
        batch: int,
        device: torch.device,
        threads: int,
        prefetch: int,
    ) -> None:
        """A stream whose pipeline is built by the first `take`.

        Args:
            folder: the images.
            feed: the inputs of a run, by its number; a pure function, called ahead of time.
            graph: the outputs' nodes; its inputs are `encoded` and the names of the feed's arrays.
            batch: the most images that a run has.
            device: where the outputs are.
            threads: DALI's CPU threads.
            prefetch: runs prepared ahead.
        """
        self._folder = folder
        self._feed = feed
        self._graph = graph
        self._device = torch.device("cuda", device.index or 0) if device.type == "cuda" else device
        self._options: dict[str, Any] = {
            "batch_size": batch,
            "num_threads": threads,
            "device_id": self._device.index if device.type == "cuda" else None,
            "prefetch_queue_depth": prefetch,
        }
        self._pipeline: Pipeline | None = None
        self._calls: _Calls | None = None
        self.next = 0
        """The run that is ready without building anew."""

    def take(self, run: int) -> list[torch.Tensor]:
        """The outputs of a run as tensors that share DALI's memory and keep it.

        Raises:
            ImageError: an image of the prefetched runs cannot be decoded.
        """
        if self._pipeline is None or run != self.next:
            self._build(run)
        assert self._pipeline is not None
        try:
            outputs = self._run(self._pipeline)
        except BaseException as error:
            assert self._calls is not None
            end = self._calls.end
            # Also after Ctrl-C: the pipeline may have moved on. The error's frames would keep it alive.
            clear_frames(error.__traceback__)
            self.close()
            if isinstance(error, RuntimeError):
                self._blame(range(run, end))
            raise
        self.next = run + 1
        return outputs

    def close(self) -> None:
        """Frees the pipeline and its threads; tensors that were handed out stay valid."""
        self._pipeline = None
        if self._calls is not None:
            self._calls.source.close()
        self._calls = None

    def _build(self, first: int) -> None:
        self.close()
        source = source_of(self._folder, self._options["num_threads"])
        calls = self._calls = _Calls(source, self._feed, first)
        sample, graph = self._feed(first), self._graph

        @pipeline_def(enable_conditionals=True, **self._options)
        def define() -> tuple[Any, ...]:
            return tuple(graph(_inputs(calls, sample)))

        pipeline = define()
        pipeline.build()
        self._pipeline = pipeline
        self.next = first

    def _run(self, pipeline: Pipeline) -> list[torch.Tensor]:
        if self._device.type != "cuda":
            return [torch.from_dlpack(output.as_tensor()) for output in pipeline.run()]
        # Bound to the consumer's stream: DALI reuses the memory only after the work queued there.
        with torch.cuda.device(self._device):
            outputs = pipeline.run(torch.cuda.current_stream())
            return [torch.from_dlpack(output.as_tensor()) for output in outputs]

    def _blame(self, runs: range) -> None:
        """Raises ImageError if an image of these runs is to blame."""
        feeds = [self._feed(run) for run in runs]
        images = np.concatenate([feed.images for feed in feeds])
        crops = [feed.crops for feed in feeds if feed.crops is not None]
        found = find_undecodable(self._folder, images.tolist(), np.concatenate(crops) if crops else None)
        if found is not None:
            path, reason = found
            raise ImageError(f"image {path} {reason}; replace or remove it") from None
