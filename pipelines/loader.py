"""Training and evaluation batches as torch tensors, through DALI.

The order of the images and the augmentation are functions of (seed, epoch, step) alone and the same for any
number of processes with the same global batch; a resume names the epoch and the step and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import nvidia.dali
import torch

from fasttrain.config import Data
from fasttrain.errors import ConfigError
from fasttrain.launch.place import local_world
from fasttrain.randomness import draw_sizes

from . import draws
from .batch import Batch
from .folder import ImageFolder
from .graphs import eval_graph, train_graph
from .state import check_fingerprint, read_position
from .stream import Feed, Stream

MAX_THREADS = 16
"""DALI's CPU threads per process unless `data.threads` says otherwise."""


class TrainLoader:
    """Shuffled, augmented batches of one process; see `train_loader`."""

    def __init__(
        self,
        data: Data,
        folder: ImageFolder,
        split: draws.Split,
        *,
        seed: int,
        rank: int,
        device: torch.device,
        dtype: torch.dtype,
        sizes: Sequence[int],
        sizes_per_step: int,
    ) -> None:
        self.steps_per_epoch = split.steps
        self._folder, self._data, self._split = folder, data, split
        self._next = 0
        self._seed, self._rank = seed, rank
        self._sizes, self._sizes_per_step = tuple(sizes), sizes_per_step if sizes else 0
        self._labels = np.array(folder.labels, np.int64)
        # Two: the runs in flight can span an epoch's end.
        order = partial(
            draws.order,
            seed,
            images=len(folder.files),
            shuffle=data.shuffle,
            repeats=data.repeats,
            batch=split.batch * split.world,
        )
        self._order = lru_cache(maxsize=2)(order)
        graph = partial(train_graph, data=data, dtype=dtype, cuda=device.type == "cuda")
        self._stream = Stream(
            folder,
            self._feed,
            graph,
            batch=split.batch,
            device=device,
            threads=dali_threads(data),
            prefetch=data.prefetch,
        )

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on.

        Consecutive epochs stay prefetched over their boundary; any other jump starts the pipeline anew.

        Raises:
            DataError: an image cannot be decoded; the message names it.
        """
        for step in range(start_step, self.steps_per_epoch):
            run = epoch * self.steps_per_epoch + step
            images, *small, targets = self._stream.take(run)
            self._next = run + 1
            yield Batch(channels_first(images), tuple(channels_first(batch) for batch in small), targets)

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and step of the batch after the last one that was handed over."""
        return divmod(self._next, self.steps_per_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands and the fingerprint of what it loads; ranks differ in `rank` alone."""
        epoch, step = self.position
        return {"epoch": epoch, "step": step, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the recorded loader stood: `epoch(*position)` gives the batches that came next there.

        Raises:
            CheckpointError: it loaded something else, or is no loader's (see `state`).
        """
        check_fingerprint(self.fingerprint, state)
        epoch, step = read_position(state, self.steps_per_epoch)
        self._next = epoch * self.steps_per_epoch + step

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What decides the batches, and in what way it was read."""
        split = self._split
        ignored = {"train", "val", "classes", "builtin", "num_classes", "val_resize", "val_crop"}
        ignored |= {"threads", "prefetch", "hardware_decoder_load", "decoder_memory", "largest_image"}
        options = {name: value for name, value in asdict(self._data).items() if name not in ignored}
        return {
            "images": self._folder.fingerprint,
            "global_batch": split.batch * split.world,
            "seed": self._seed,
            "augmentation": hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest(),
            "sizes": f"{self._sizes_per_step} of {list(self._sizes)}",
            "dali": nvidia.dali.__version__,
            "source": "files" if self._folder.members is None else "tars",
            "world": split.world,
            "rank": self._rank,
        }

    def close(self) -> None:
        """Frees the pipeline; batches that were handed out stay valid."""
        self._stream.close()

    def _feed(self, run: int) -> Feed:
        epoch, step = divmod(run, self.steps_per_epoch)
        split = self._split
        rows = slice(*split.rows(step, self._rank))
        taken = self._order(epoch)[step * split.batch * split.world :][rows]
        numbers = draws.augmentation(self._data, self._seed, epoch, step, split.batch * split.world)
        arrays = {"targets": self._labels[taken], **{name: values[rows] for name, values in numbers.items()}}
        sides = draw_sizes(self._sizes, self._sizes_per_step, seed=self._seed, epoch=epoch, step=step)
        for index, side in enumerate(sides):
            arrays[f"size{index}"] = np.full(len(taken), side, np.float32)
        return Feed(taken, arrays, arrays["crop"] if self._data.augmentation == "imagenet" else None)


class EvalLoader:
    """Every image once over all processes, in a fixed order; see `eval_loader`."""

    def __init__(
        self,
        data: Data,
        folder: ImageFolder,
        *,
        batch: int,
        rank: int,
        world: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._mine = np.arange(rank, len(folder.files), world)
        self._batch = batch
        self._labels = np.array(folder.labels, np.int64)
        graph = partial(eval_graph, data=data, dtype=dtype, cuda=device.type == "cuda")
        self._stream = Stream(
            folder,
            self._feed,
            graph,
            batch=batch,
            device=device,
            threads=dali_threads(data),
            prefetch=data.prefetch,
        )

    def __len__(self) -> int:
        """Batches of this process; 0 if there are not more images than processes before it."""
        return -(-len(self._mine) // self._batch)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this process.

        Raises:
            DataError: an image cannot be decoded; the message names it.
        """
        if not len(self):
            return
        passes, begun = divmod(self._stream.next, len(self))
        # The end of a whole pass has the next pass prefetched.
        first = 0 if begun else passes * len(self)
        for step in range(len(self)):
            images, targets = self._stream.take(first + step)
            yield Batch(channels_first(images), (), targets)

    def close(self) -> None:
        """Frees the pipeline; batches that were handed out stay valid."""
        self._stream.close()

    def _feed(self, run: int) -> Feed:
        start = run % len(self) * self._batch
        taken = self._mine[start : start + self._batch]
        return Feed(taken, {"targets": self._labels[taken]})


def train_loader(
    data: Data,
    folder: ImageFolder,
    *,
    batch: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sequence[int] = (),
    sizes_per_step: int = 0,
) -> TrainLoader:
    """The training batches of process `rank` of `world`.

    Args:
        data: augmentation, normalization, threads; its folders are not looked at.
        folder: the images, `manifest.open_images`'s or `folder.scan`'s result.
        batch: images per process and step.
        rank: this process.
        world: how many processes there are.
        seed: of the order, the augmentation and the sizes.
        device: where the batches are made; with CUDA the images are decoded there.
        dtype: torch.float32 or torch.float16.
        sizes: sides that the downscaled batches are drawn from, pixels.
        sizes_per_step: R, how many are drawn per step, with replacement.

    Raises:
        ConfigError: the global batch is larger than the data, or a wrong dtype.
    """
    _check_dtype(dtype)
    split = draws.Split(images=len(folder.files), batch=batch, world=world, drop_last=data.drop_last)
    return TrainLoader(
        data,
        folder,
        split,
        seed=seed,
        rank=rank,
        device=device,
        dtype=dtype,
        sizes=sizes,
        sizes_per_step=sizes_per_step,
    )


def eval_loader(
    data: Data,
    folder: ImageFolder,
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    device: torch.device,
    dtype: torch.dtype,
) -> EvalLoader:
    """The evaluation batches of process `rank` of `world`: at most `batch` images each, none twice.

    Raises:
        ConfigError: a wrong dtype.
    """
    _check_dtype(dtype)
    return EvalLoader(data, folder, batch=batch, rank=rank, world=world, device=device, dtype=dtype)


def channels_first(images: torch.Tensor) -> torch.Tensor:
    """DALI's [B, H, W, 3] seen as [B, 3, H, W] in channels_last memory, without a copy."""
    return images.permute(0, 3, 1, 2)


def dali_threads(data: Data) -> int:
    """DALI's threads: as configured, or this process's share of the machine's cores."""
    cores = len(os.sched_getaffinity(0))
    return data.threads or max(1, min(MAX_THREADS, cores // local_world()))


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float16):
        raise ConfigError(f"dtype of the images is {dtype}; allowed: torch.float32, torch.float16")
