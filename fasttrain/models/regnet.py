"""timm's RegNets (Radosavovic et al. 2020; Dollar et al. 2021) as staged networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models.regnet import PreBottleneck
from timm.models.regnet import RegNet as TimmRegNet
from torch import Tensor, nn

from .resnet import ResidualStages


class RegNet(ResidualStages):
    """A timm RegNet X, Y, Z or V. Its modules are taken over under their own names; state dicts fit timm
    unchanged.

    Of RegNet Z the first block of a stage has no shortcut.
    """

    def __init__(self, source: TimmRegNet) -> None:
        """Take over `source`, which must not be used afterwards."""
        super().__init__()
        self.take_over(source)

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The blocks of s1, s2 and so on."""
        return [list(self.child(name).children()) for name in ("s1", "s2", "s3", "s4")]

    @property
    def stem_modules(self) -> Sequence[nn.Module]:
        """Convolution, with batch norm and ReLU or alone."""
        return [self.child("stem")]

    @property
    def head_modules(self) -> Sequence[nn.Module]:
        """Convolution, activation or nothing; pooling and classifier."""
        return [self.child("final_conv"), self.child("head")]

    @property
    def classifiers(self) -> Sequence[nn.Module]:
        """The last layer of timm's head."""
        return [self.child("head").fc]

    def has_shortcut(self, block: nn.Module) -> bool:
        """Whether a block adds its input, or a projection of it, to its residual branch."""
        return block.downsample is not None

    def shortcut(self, block: Any, x: Tensor) -> Tensor:
        """A block without its residual branch: identity or projection, between its norm and activation."""
        if isinstance(block, PreBottleneck):
            return block.downsample(block.norm1(x))
        return block.act3(block.downsample(x))

    def stem(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H/2, W/2]."""
        return self.child("stem")(x)

    def head(self, x: Tensor) -> Tensor:
        """Global average and classifier: [B, C, h, w] to [B, num_classes]."""
        return self.child("head")(self.child("final_conv")(x))
