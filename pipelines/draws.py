"""Which images a training step takes and how each is augmented, as functions of (seed, epoch, step).

Everything is drawn for the global batch and each process takes its rows, so that the same images are
augmented in the same way whatever the number of processes, and a resume has no state to restore.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasttrain.config import Data
from fasttrain.errors import ConfigError
from fasttrain.randomness import Stream, generator

from . import erasing, policies

TRIES = 10
"""Tries at a random resized crop before the centre crop, as in torchvision."""
RATIO = (3 / 4, 4 / 3)
"""Range of a random resized crop's width over height."""
PCA_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
PCA_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
"""Principal components of ImageNet's RGB values on the 0-1 scale (Krizhevsky et al. 2012), in columns."""

JITTER = ("brightness", "contrast", "saturation")
"""The colour jitter's operations; an order of them is given as indices into this."""

_ORDERS = np.array(list(itertools.permutations(range(len(JITTER)))), np.int32)
CROP_UNIFORMS = 2 * TRIES + 2
"""Uniform numbers of a random resized crop: areas, ratios, two positions."""
_UNIFORMS = CROP_UNIFORMS + 1 + 3 + 1
"""Uniform numbers per image: those of its crop, flip, three jitter factors and their order."""


@dataclass(frozen=True, slots=True)
class Split:
    """How an epoch's permutation is cut into global batches and these into the processes' batches."""

    images: int
    """Images of the data set."""
    batch: int
    """Images per process and step."""
    world: int
    """Processes."""
    drop_last: bool
    """Whether the last, partial global batch is left out."""

    def __post_init__(self) -> None:
        if self.steps == 0 or (self.drop_last and self.images < self.batch * self.world):
            raise ConfigError(
                f"run.batch is {self.batch * self.world}, larger than the data's {self.images} images; "
                f"allowed: at most {self.images}"
            )

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        whole, rest = divmod(self.images, self.batch * self.world)
        return whole + int(not self.drop_last and rest >= self.world)

    def rows(self, step: int, rank: int) -> tuple[int, int]:
        """The rows [start, stop) of the global batch that a process takes.

        A partial batch is shared evenly; what does not divide is left out.
        """
        size = min(self.batch, (self.images - step * self.batch * self.world) // self.world)
        return rank * size, (rank + 1) * size


def order(
    seed: int, epoch: int, images: int, *, shuffle: bool = True, repeats: int = 1, batch: int = 1
) -> NDArray[np.int64]:
    """The images of an epoch in the order of its steps, int64 [images].

    A permutation (not shuffled: 0, 1, ...); with repeats, the beginning of one, each image so often in a row
    (as the sampler of DeiT and RSB does it), the copies then spread over their global batch, so that
    processes share them and neighbours differ.

    Args:
        seed: of the run.
        epoch: counted from 0.
        images: of the data set.
        shuffle: whether each epoch has an order of its own.
        repeats: how often an image is taken.
        batch: images per step over all processes.
    """
    permutation = generator(seed, Stream.ORDER, epoch).permutation(images) if shuffle else np.arange(images)
    if repeats == 1:
        return permutation
    place = np.arange(images)
    spread = np.lexsort((place, place % repeats, place // batch))
    return np.repeat(permutation, repeats)[:images][spread]


def augmentation(data: Data, seed: int, epoch: int, step: int, images: int) -> dict[str, NDArray[Any]]:
    """The random numbers that augment a global batch of B images, by the input of the graph they feed.

    Returns:
        `crop`: float32 [B, 22] for "imagenet" (`TRIES` widths and heights over the square root of the
        image's area, then the crop's position in 0-1, vertical first), [B, 2] for "small" (the position);
        with flips, `flip`: int32 [B], 0 or 1;
        with jitter, `brightness`, `contrast`, `saturation`: float32 [B] factors, and with exact colours
        `order0` to `order2`: int32 [B], which operation (an index into `JITTER`) comes first, second, third;
        with lighting, `lighting`: float32 [B, 3], added to RGB on the 0-255 scale;
        with a policy, `policies.draw`'s numbers; with erasing, `erasing.draw`'s.
    """
    rng = generator(seed, Stream.AUGMENTATION, epoch, step)
    uniform = rng.random((images, _UNIFORMS))
    crop = uniform[:, 2 * TRIES : CROP_UNIFORMS].astype(np.float32)
    if data.augmentation == "imagenet":
        crop = resized_crops(uniform[:, :CROP_UNIFORMS], data.min_area)
    numbers: dict[str, NDArray[Any]] = {"crop": crop}
    flip, *factors, order = uniform[:, CROP_UNIFORMS:].T
    if data.flip:
        numbers["flip"] = (flip < data.flip).astype(np.int32)
    if data.jitter:
        own = (1 + data.jitter * (2 * factor - 1) for factor in factors)
        numbers.update((name, factor.astype(np.float32)) for name, factor in zip(JITTER, own, strict=True))
    if data.jitter and data.colour == "exact":
        orders = _ORDERS[(order * len(_ORDERS)).astype(int)]
        numbers.update((f"order{place}", indices) for place, indices in enumerate(orders.T.copy()))
    if data.lighting:
        numbers["lighting"] = lighting(rng, images, data)
    if data.policy != "none":
        numbers |= policies.draw(data, seed, epoch, step, images)
    if data.erase:
        numbers |= erasing.draw(data, seed, epoch, step, images)
    return numbers


def resized_crops(uniform: NDArray[np.float64], min_area: float) -> NDArray[np.float32]:
    """Uniform numbers [B, CROP_UNIFORMS] as `windows.random_resized` takes them, float32 of that shape."""
    sides = _relative_sides(uniform[:, : 2 * TRIES], min_area)
    return np.concatenate([sides, uniform[:, 2 * TRIES :]], axis=1).astype(np.float32)


def _relative_sides(uniform: NDArray[np.float64], min_area: float) -> NDArray[np.float64]:
    """Widths and heights [B, 2 * TRIES] of crops of random area and ratio in an image of area 1."""
    area = min_area + (1 - min_area) * uniform[:, :TRIES]
    low, high = np.log(RATIO)
    ratio = np.exp(low + (high - low) * uniform[:, TRIES:])
    return np.sqrt(np.concatenate([area * ratio, area / ratio], axis=1))


def lighting(rng: np.random.Generator, images: int, data: Data) -> NDArray[np.float32]:
    """PCA lighting: what is added to each image's RGB on the 0-255 scale, float32 [images, 3].

    The published code adds values meant for the 0-1 scale to integers of 0-255 and truncates the sum, so that
    each channel stays or goes down by one level: what is added is rounded down.
    """
    alpha = rng.normal(0.0, data.lighting, (images, 3))
    shift = (alpha * PCA_EIGENVALUES) @ PCA_EIGENVECTORS.T
    return (np.floor(shift) if data.published_lighting else 255 * shift).astype(np.float32)
