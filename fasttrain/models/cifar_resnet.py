"""ResNets for 32x32 images, which timm lacks.

Those of He et al. 2016, section 4.2, with 6n + 2 layers in 3 stages; and ImageNet's ResNet-50 without its
stem's strides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from .resnet import ResidualStages, ResNet, average

CIFAR_RESNETS = {f"cifar_resnet{6 * n + 2}": n for n in (3, 5, 7, 9, 18)}
"""Name to blocks per stage."""

CIFAR_BOTTLENECKS = {"cifar_resnet50": "resnet50"}
"""Names of variants of timm's bottleneck ResNets, and what they are made of."""

_WIDTHS = (16, 32, 64)


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut between stages (option A): every second pixel, new channels zero."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C + new_channels, H/2, W/2]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


class CifarResNet(ResidualStages):
    """A stem of one 3x3 convolution, three stages of n basic blocks (16, 32, 64 channels), a linear head."""

    reduction = 4

    def __init__(self, blocks_per_stage: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.act1 = nn.ReLU(inplace=True)
        inplanes = _WIDTHS[0]
        for index, planes in enumerate(_WIDTHS, start=1):
            self.add_module(f"layer{index}", _stage(inplanes, planes, blocks_per_stage))
            inplanes = planes
        self.fc = nn.Linear(inplanes, num_classes)

    @property
    def stem_modules(self) -> Sequence[nn.Module]:
        """Convolution, batch norm, ReLU."""
        return [self.conv1, self.bn1, self.act1]

    @property
    def head_modules(self) -> Sequence[nn.Module]:
        """The classifier."""
        return [self.fc]

    def stem(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, 16, H, W]."""
        for module in self.stem_modules:
            x = module(x)
        return x

    def head(self, x: Tensor) -> Tensor:
        """Global average and classifier: [B, 64, h, w] to [B, num_classes]."""
        return self.fc(average(x))


def _stage(inplanes: int, planes: int, blocks: int) -> nn.Sequential:
    widens = planes != inplanes
    first = BasicBlock(
        inplanes,
        planes,
        stride=2 if widens else 1,
        downsample=PaddedShortcut(planes - inplanes) if widens else None,
    )
    return nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(blocks - 1)))


def create_cifar_bottleneck(name: str, num_classes: int) -> ResNet:
    """A timm ResNet whose stem has stride 1 and no max-pool, which leaves 4x4 of 32x32 pixels at the end; our
    choice since the papers do not say. Weights are those of timm's network.
    """
    import timm

    source = timm.create_model(CIFAR_BOTTLENECKS[name], pretrained=False, num_classes=num_classes)
    source.conv1.stride = (1, 1)
    source.maxpool = nn.Identity()
    network = ResNet(source)
    network.reduction //= 4
    return network
