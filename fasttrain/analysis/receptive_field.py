"""Effective receptive field at several input sizes (ST++ Figure 6, after Luo et al. 2016).

How much each input pixel moves the centre of the last feature map: the gradient of the centre's sum over the
channels, its size summed over the colours and averaged over the images. Of an even map the four units around
the middle are the centre. As numbers: the sides of the squares in the middle that hold 50 and 95 % of it. The
papers' text could not be looked up; sizes and numbers are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..models import StagedNetwork
from ..opening import Opened
from .options import NetworkOptions, check_least
from .output import Rows
from .runs import find, open_each

SHARES = (0.5, 0.95)
"""Of the whole gradient, in the squares that are told."""


@dataclass(frozen=True, kw_only=True)
class ReceptiveFieldOptions(NetworkOptions):
    """Gradient of the last feature map's centre by the input's pixels; runs may be of different networks."""

    images: int = 64
    """How many of the validation images, evenly spread over them; 0: all."""
    sizes: tuple[int, ...] = ()
    """Sides of the images, pixels, resized from data.val-crop; empty: a half, three quarters and all of the
    first run's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for side in self.sizes:
            check_least("sizes", side, 1, 4096)


@dataclass(frozen=True, slots=True)
class Field:
    """A receptive field.

    Attributes:
        label: of the run.
        size: side of the images, pixels.
        sides: of the squares that hold each of `SHARES`, pixels.
        field: gradient by pixel [size][size], its sum 1.
    """

    label: str
    size: int
    sides: list[float]
    field: list[list[float]]


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """Receptive fields of each run at each size; `shares`: what their squares hold."""

    shares: tuple[float, ...]
    fields: list[Field]

    def rows(self) -> Rows:
        """Sides of the squares, pixels and shares of the image's side."""
        columns = ["side of the square, pixels", "image", *(f"holds {share:.0%}" for share in self.shares)]
        cells = [
            [f.label, f.size, *(f"{side:.1f} ({side / f.size:.0%})" for side in f.sides)] for f in self.fields
        ]
        return Rows(columns, cells)

    def draw(self, figure: Any) -> None:
        """A map for each run (rows) and size (columns), with its squares."""
        names = list(dict.fromkeys(field.label for field in self.fields))
        columns = len(self.fields) // len(names)
        figure.set_size_inches(2.7 * columns + 0.6, 2.9 * len(names) + 0.5)
        grid = figure.subplots(len(names), columns, squeeze=False)
        for axes, field in zip(grid.flat, self.fields, strict=True):
            axes.imshow(np.sqrt(np.array(field.field)), cmap="magma", vmin=0)
            for side, style in zip(field.sides, ("-", "--"), strict=True):
                corner = (field.size - side) / 2 - 0.5
                x, y = [corner, corner + side], [corner, corner + side]
                axes.plot(
                    [x[0], x[1], x[1], x[0], x[0]],
                    [y[0], y[0], y[1], y[1], y[0]],
                    style,
                    color="white",
                    linewidth=1,
                )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(
                f"{field.size} px; squares {' and '.join(map('{:.1f}'.format, field.sides))}", fontsize=9
            )
        for axes, name in zip(grid[:, 0], names, strict=True):
            axes.set_ylabel(name, fontsize=10)
        figure.suptitle(
            "Effective receptive field (square root); squares hold 50 % (solid), 95 % (dashed)", fontsize=10
        )


def receptive_field(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Mean size of the gradient of a feature map's centre by each pixel [H, W].

    Args:
        features: images [B, 3, H, W] to a feature map [B, C, h, w], image by image.
        images: to average over.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        x = features(images)
        height, width = x.shape[-2:]
        middle = x[..., (height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1]
        (gradient,) = torch.autograd.grad(middle.mean((2, 3)).sum(), images)
    return gradient.abs().sum(1).mean(0)


def square_side(field: Tensor, share: float) -> float:
    """Side of the centred square that holds a share of a square field's sum, pixels.

    Linear between the squares of whole pixels.
    """
    side = field.shape[-1]
    margins = range((side - 1) // 2, -1, -1)
    held = [float(field[m : side - m, m : side - m].sum() / field.sum()) for m in margins]
    return float(np.interp(share, [0.0, *held], [0, *(side - 2 * m for m in margins)]))


def measure(runs: Sequence[Path], options: ReceptiveFieldOptions) -> ReceptiveField:
    """Average over each run's images at each size.

    Raises:
        RunError: runs that cannot be opened, or sizes that a network does not take.
    """
    sources = find(runs, options, alike=False)
    crop = sources[0].config.data.val_crop
    sizes = options.sizes or tuple(dict.fromkeys(max(1, crop * quarters // 4) for quarters in (2, 3, 4)))
    fields = []
    for source, run in open_each(sources, options):
        smallest = run.network.reduction
        if min(sizes) < smallest:
            raise ConfigError(
                f"--sizes has {min(sizes)}; allowed for {source.config.model.name}: at least {smallest}"
            )
        run.network.check_sides("--sizes", sizes)
        fields += [_field(source.label, run, size) for size in sizes]
    return ReceptiveField(SHARES, fields)


def _field(label: str, run: Opened, size: int) -> Field:
    total = torch.zeros(size, size, dtype=torch.float64)
    run.network.eval()
    for images, _ in run.validation():
        if len(images):
            small = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
            total += len(images) * receptive_field(lambda x: _features(run.network, x), small).double().cpu()
    total = total / total.sum()
    return Field(label, size, [square_side(total, share) for share in SHARES], total.tolist())


def _features(network: StagedNetwork, x: Tensor) -> Tensor:
    """The last stage's output."""
    x = network.stem(x)
    for ref in network.full:
        x = network.run_block(ref, x)
    return network.feature_map(x)
