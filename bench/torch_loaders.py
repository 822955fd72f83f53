"""The loaders that `python -m bench data` compares with: torch's DataLoader on torchvision or PIL images.

The same augmentation as this project's pipeline: random resized crop, flip, colour jitter in random order,
PCA lighting, normalization, and a downscaled copy of the batch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from fasttrain.config import Data
from fasttrain.errors import DataError
from fasttrain.pipelines.draws import PCA_EIGENVALUES, PCA_EIGENVECTORS
from fasttrain.pipelines.folder import ImageFolder
from fasttrain.pipelines.workers import shorten_sockets


class Images(Dataset[Tensor]):
    """An image folder, decoded and transformed: [3, H, W]."""

    def __init__(self, folder: ImageFolder, read: Callable[[bytes], object], transform: nn.Module) -> None:
        self.folder, self.read, self.transform = folder, read, transform

    def __len__(self) -> int:
        """The number of images."""
        return len(self.folder.files)

    def __getitem__(self, index: int) -> Tensor:
        """One image."""
        try:
            return self.transform(self.read(self.folder.read(index)))
        except (OSError, RuntimeError) as error:
            raise DataError(f"image {self.folder.path(index)} cannot be decoded: {error}") from None


class Lighting(nn.Module):
    """PCA lighting (Krizhevsky et al. 2012) of a float image [3, H, W] on the 0-1 scale."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation
        self.vectors = torch.from_numpy(PCA_EIGENVECTORS * PCA_EIGENVALUES).float()

    def forward(self, image: Tensor) -> Tensor:
        """The image plus one random shift per channel."""
        return image + (self.vectors @ (self.deviation * torch.randn(3)))[:, None, None]


def read_tensor(encoded: bytes) -> Tensor:
    """By torchvision: uint8 [3, H, W]."""
    return decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB)


def read_pil(encoded: bytes) -> Image.Image:
    """By PIL, decoded."""
    with Image.open(io.BytesIO(encoded)) as image:
        return image.convert("RGB")


def transform(data: Data | None) -> nn.Module:
    """Torchvision's v2 transforms, for tensors and PIL images alike; None: the image is decoded only."""
    if data is None:
        return v2.Compose([v2.CenterCrop(1), v2.ToImage()])  # a pixel, so that batches can be made
    steps: list[nn.Module] = [
        v2.RandomResizedCrop(data.crop, (data.min_area, 1.0), antialias=True),
        v2.RandomHorizontalFlip(data.flip),
    ]
    if data.jitter:
        steps.append(v2.ColorJitter(data.jitter, data.jitter, data.jitter))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if data.lighting:
        steps.append(Lighting(data.lighting))
    return v2.Compose([*steps, v2.Normalize(data.mean, data.std)])


def batches(
    kind: str, folder: ImageFolder, data: Data | None, *, batch: int, count: int, workers: int, side: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """Random batches of a DataLoader: [B, 3, crop, crop], and [B, 3, side, side] where there is a side.

    Args:
        kind: `pil` or `torchvision`.
        folder: the images.
        data: augmentation; None: decode only, one pixel each.
        batch: images per batch.
        count: batches.
        workers: processes.
        side: of the downscaled batch, pixels; 0: none.
    """
    dataset = Images(folder, read_pil if kind == "pil" else read_tensor, transform(data))
    context = "fork" if workers else None  # started anew, each worker would import torch for seconds
    shorten_sockets()  # by which workers hand tensors over
    sampler = RandomSampler(dataset, num_samples=count * batch)
    loader = DataLoader(dataset, batch, sampler=sampler, num_workers=workers, multiprocessing_context=context)
    for images in loader:
        if side:
            yield images, F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        else:
            yield (images,)
