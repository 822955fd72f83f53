"""A plain-torch stand-in for the published code's network: its module names, shapes and forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // 4
        self.body = nn.Sequential(
            *(*_convolution(inputs, middle, 1), nn.ReLU()),
            *(*_convolution(middle, middle, 3, stride), nn.ReLU()),
            *_convolution(middle, outputs, 1),
        )
        if inputs != outputs:
            self.shortcut = nn.Sequential(*_convolution(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x) if hasattr(self, "shortcut") else x
        return torch.relu(self.body(x) + shortcut)


class Published(nn.Module):
    """A ResNet of bottlenecks: `features` (stem, blocks, pool), `classifier`."""

    def __init__(self, depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Sequential(*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        ]
        channels = 64
        for stage, blocks in enumerate(depths):
            for block in range(blocks):
                outputs = 256 * 2**stage
                layers.append(_Block(channels, outputs, 2 if stage and not block else 1))
                channels = outputs
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d((1, 1)))
        self.classifier = nn.Sequential(nn.Linear(channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, classes]."""
        return self.classifier(self.features(x).flatten(1))
