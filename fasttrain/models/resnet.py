"""timm's ResNets (resnet, resnext, wide_resnet, resnet*d and their kin) as staged networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models import resnet as timm_resnet
from torch import Tensor, nn

from .staged import StagedNetwork


class _NoShortcut(nn.Module):
    """Stands in for a block's projection, so that its residual branch has nothing to be added to."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def average(x: Tensor) -> Tensor:
    """Mean over the pixels, [B, C, h, w] to [B, C]; its gradient comes in x's memory format."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
    return x.mean((2, 3))


class ResidualStages(StagedNetwork):
    """What ResNets made of timm's `BasicBlock` and `Bottleneck` share, whatever their stem."""

    _no_shortcut = _NoShortcut()

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """layer1, layer2 and so on, each a sequence of blocks."""
        return [child for name, child in self.named_children() if name.startswith("layer")]  # type: ignore[misc]

    def branch(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block without its shortcut: its own forward with the projection taken away."""
        projection = block.downsample
        block.downsample = self._no_shortcut
        try:
            return block(x)
        finally:
            block.downsample = projection

    def shortcut(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block without its residual branch: identity or projection, then ReLU."""
        downsample = block.downsample
        return F.relu(x if downsample is None else downsample(x))  # type: ignore[operator]


class ResNet(ResidualStages):
    """A timm ResNet. Its modules are taken over under their own names, so state dicts fit timm unchanged."""

    def __init__(self, source: timm_resnet.ResNet) -> None:
        """Take over `source`, which must not be used afterwards."""
        super().__init__()
        self.take_over(source)

    @property
    def stem_modules(self) -> Sequence[nn.Module]:
        """Convolution (or three), batch norm, ReLU, max-pool."""
        return [self.conv1, self.bn1, self.act1, self.maxpool]  # type: ignore[list-item]

    @property
    def head_modules(self) -> Sequence[nn.Module]:
        """Global pooling, classifier."""
        return [self.global_pool, self.fc]  # type: ignore[list-item]

    def stem(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H/4, W/4]."""
        for module in self.stem_modules:
            x = module(x)
        return x

    def head(self, x: Tensor) -> Tensor:
        """Global pooling and classifier: [B, C, h, w] to [B, num_classes]."""
        pool: nn.Module = self.global_pool  # type: ignore[assignment]
        x = average(x) if getattr(pool, "pool_type", "") == "avg" else pool(x)
        return self.fc(F.dropout(x, self.drop_rate, self.training))  # type: ignore[operator]
