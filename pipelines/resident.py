"""Small images that fit into memory: decoded once, kept on the device as bytes, augmented there in torch.

The draws are `pipelines.draws`', so that a step sees the images, crops and flips that the DALI loader with
"small" augmentation would give it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fasttrain.config import Data
from fasttrain.errors import ConfigError, DataError
from fasttrain.randomness import draw_sizes

from . import draws
from .batch import Batch
from .folder import ImageFolder
from .reference import stored_pixels


@dataclass(frozen=True, slots=True)
class ResidentImages:
    """A decoded data set.

    Attributes:
        pixels: uint8 [N, side, side, 3].
        labels: int64 [N].
    """

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def to(self, device: torch.device) -> ResidentImages:
        """The same images on another device."""
        return ResidentImages(self.pixels.to(device), self.labels.to(device))

    def first(self, count: int) -> ResidentImages:
        """`count` images (or all) spread evenly over the data set, which is ordered by class."""
        picks = torch.linspace(0, len(self) - 1, min(count, len(self)), dtype=torch.float64).long()
        return ResidentImages(self.pixels[picks], self.labels[picks])


def decode(folder: ImageFolder, side: int) -> ResidentImages:
    """Decode a folder's images: shorter side to `side` pixels (antialiased), centre crop.

    Raises:
        DataError: an image cannot be decoded; the message names it.
    """
    pixels = np.empty((len(folder.files), side, side, 3), np.uint8)
    for index in range(len(folder.files)):
        path = folder.path(index)
        try:
            stored = stored_pixels(folder.read(index))
        except (OSError, ValueError) as error:  # Pillow's of no image is an OSError
            raise DataError(f"image {path} cannot be decoded ({error}); replace or remove it") from None
        pixels[index] = np.asarray(_square(Image.fromarray(stored), side))
    return ResidentImages(torch.from_numpy(pixels), torch.tensor(folder.labels, dtype=torch.int64))


def _square(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    width, height = (max(side, round(scale * length)) for length in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


class ResidentLoader:
    """Shuffled, augmented batches; the same interface as `pipelines.loader.TrainLoader`."""

    def __init__(
        self,
        images: ResidentImages,
        data: Data,
        *,
        batch: int,
        seed: int,
        sizes: Sequence[int] = (),
        sizes_per_step: int = 0,
    ) -> None:
        """Loader of one process.

        Args:
            images: of side `data.crop`, on the device where the batches shall be.
            data: padding, flip, shuffle, repeats, normalization, antialias, drop_last; no other augmentation
                is done.
            batch: images per step.
            seed: of the order, the augmentation and the sizes.
            sizes: sides that downscaled batches are drawn from, pixels.
            sizes_per_step: R, how many are drawn per step.

        Raises:
            ConfigError: a batch larger than the data, a policy, or erasing.
        """
        for name, none in (("policy", "none"), ("erase", 0)):
            if getattr(data, name) != none:
                raise ConfigError(
                    f"data.{name} is {getattr(data, name)!r}; allowed for resident images: {none}"
                )
        self._images, self._data, self._seed = images, data, seed
        self._sizes, self._sizes_per_step = tuple(sizes), sizes_per_step
        self._split = draws.Split(len(images), batch, 1, data.drop_last)
        self.steps_per_epoch = self._split.steps
        margin = data.padding
        self._padded = F.pad(images.pixels, (0, 0, margin, margin, margin, margin))
        device = images.pixels.device
        self._mean = 255 * torch.tensor(data.mean, device=device)
        self._scale = 1 / (255 * torch.tensor(data.std, device=device))
        self._pixels = torch.arange(data.crop, device=device)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on."""
        images, data, batch = len(self._images), self._data, self._split.batch
        order = draws.order(
            self._seed, epoch, images, shuffle=data.shuffle, repeats=data.repeats, batch=batch
        )
        for step in range(start_step, self.steps_per_epoch):
            start, stop = self._split.rows(step, 0)
            first = step * self._split.batch
            yield self._batch(order[first + start : first + stop], epoch, step)

    def _batch(self, taken: np.ndarray, epoch: int, step: int) -> Batch:
        numbers = draws.augmentation(self._data, self._seed, epoch, step, self._split.batch)
        free = 2 * self._data.padding
        corners = np.minimum(np.floor(numbers["crop"] * (free + 1)), free).astype(np.int64)
        flips = numbers.get("flip", np.zeros(len(corners), np.int32))
        arrays = np.column_stack([taken, corners[: len(taken)], flips[: len(taken)]])
        index, top, left, flip = torch.from_numpy(arrays).to(self._padded.device).unbind(1)
        rows = top[:, None] + self._pixels
        columns = left[:, None] + torch.where(flip[:, None] > 0, self._pixels.flip(0), self._pixels)
        crops = self._padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        full = ((crops - self._mean) * self._scale).permute(0, 3, 1, 2)
        sides = draw_sizes(self._sizes, self._sizes_per_step, seed=self._seed, epoch=epoch, step=step)
        return Batch(full, tuple(self._resized(full, side) for side in sides), self._images.labels[index])

    def _resized(self, full: torch.Tensor, side: int) -> torch.Tensor:
        if side == full.shape[-1]:
            return full
        return F.interpolate(full, (side, side), mode="bilinear", antialias=self._data.antialias)

    def close(self) -> None:
        """Nothing to free."""


def ordered_batches(
    images: ResidentImages, data: Data, batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every image once, without augmentation: normalized [B, 3, side, side] and targets, int64 [B]."""
    device = images.pixels.device
    mean, std = (255 * torch.tensor(values, device=device) for values in (data.mean, data.std))
    for pixels, labels in zip(images.pixels.split(batch), images.labels.split(batch), strict=True):
        yield ((pixels - mean) / std).permute(0, 3, 1, 2), labels
