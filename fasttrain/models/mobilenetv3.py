"""timm's MobileNetV3 (Howard et al. 2019) as staged networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from timm.models.mobilenetv3 import MobileNetV3 as TimmMobileNetV3
from timm.models.mobilenetv3 import SqueezeExcite
from torch import Tensor, nn

from .resnet import average
from .staged import StagedNetwork

CIFAR_MOBILENETS = {"cifar_mobilenetv3_large": "mobilenetv3_large_100"}
"""Names of variants for 32x32 images, and what they are made of."""


class _SqueezeExcite(SqueezeExcite):
    """timm's, whose gradient comes in its input's memory format."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], each channel scaled by what the mean over the pixels says."""
        squeezed = self.act1(self.conv_reduce(average(x)[:, :, None, None]))
        return x * self.gate(self.conv_expand(squeezed))


class MobileNetV3(StagedNetwork):
    """A timm MobileNetV3. Its modules are taken over under their own names; state dicts fit timm unchanged.

    The last of timm's `blocks`, a 1x1 convolution with batch norm, belongs to the head. A block that changes
    width or resolution has no shortcut; in each stage that is the first block at most.
    """

    def __init__(self, source: TimmMobileNetV3) -> None:
        """Take over `source`, which pools by averages as timm's all do, and must not be used afterwards."""
        super().__init__()
        self.take_over(source)
        for module in self.modules():
            if type(module) is SqueezeExcite:
                module.__class__ = _SqueezeExcite
            elif isinstance(module, nn.Hardswish):
                module.inplace = False  # in place, autograd copies its input first

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """blocks.0, blocks.1 and so on but the last, each a sequence of blocks."""
        return list(self.blocks)[:-1]  # type: ignore[arg-type]

    @property
    def stem_modules(self) -> Sequence[nn.Module]:
        """Convolution, batch norm with its activation."""
        return [self.conv_stem, self.bn1]  # type: ignore[list-item]

    @property
    def head_modules(self) -> Sequence[nn.Module]:
        """The last of `blocks`, 1x1 convolution, its activation, classifier."""
        last = list(self.blocks)[-1]  # type: ignore[arg-type]
        return [last, self.conv_head, self.norm_head, self.act2, self.classifier]

    def stem(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H/2, W/2]."""
        for module in self.stem_modules:
            x = module(x)
        return x

    def head(self, x: Tensor) -> Tensor:
        """Widening, global average, convolution and classifier: [B, C, h, w] to [B, num_classes]."""
        last, *convolution, classifier = self.head_modules
        x = average(last(x))[:, :, None, None]
        for module in convolution:
            x = module(x)
        return classifier(F.dropout(x.flatten(1), self.drop_rate, self.training))

    def has_shortcut(self, block: nn.Module) -> bool:
        """Whether a block adds its input to its residual branch."""
        return bool(block.has_skip)

    def branch(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block with a shortcut, without it: its own forward that adds nothing."""
        block.has_skip = False  # type: ignore[assignment]
        try:
            return block(x)
        finally:
            block.has_skip = True  # type: ignore[assignment]


def is_mobilenetv3(name: str) -> bool:
    """Whether this is a timm MobileNetV3's name, or that of a variant for 32x32 images."""
    return name in CIFAR_MOBILENETS or name in timm_names()


def timm_names() -> list[str]:
    """Of timm's MobileNetV3; its module has other networks too."""
    import timm

    return timm.list_models("mobilenetv3_*", module="mobilenetv3")


def create_mobilenetv3(name: str, num_classes: int) -> MobileNetV3:
    """A MobileNetV3 with timm's random weights.

    The variants for 32x32 images keep the resolution in their stem and first two strided stages, which leaves
    8x8 at the end; our choice since the papers do not say.
    """
    import timm

    source = timm.create_model(CIFAR_MOBILENETS.get(name, name), pretrained=False, num_classes=num_classes)
    network = MobileNetV3(source)
    if name in CIFAR_MOBILENETS:
        for convolution in (source.conv_stem, source.blocks[1][0].conv_dw, source.blocks[2][0].conv_dw):
            convolution.stride = (1, 1)
            network.reduction //= 2
    return network
