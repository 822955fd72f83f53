"""timm's ConvNeXt and ConvNeXt V2 (Liu et al. 2022, Woo et al. 2023) as staged networks."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor, nn

from .staged import StagedNetwork


class ConvNeXt(StagedNetwork):
    """A timm ConvNeXt. Its modules are taken over under their own names; state dicts fit timm unchanged.

    The norm and strided convolution before a stage are its transition; all shortcuts are identities.
    """

    def __init__(self, source: TimmConvNeXt) -> None:
        """Take over `source`, which must not be used afterwards."""
        super().__init__()
        self.take_over(source)

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The blocks of stages.0, stages.1 and so on."""
        return [stage.blocks for stage in self.child("stages")]

    @property
    def stem_modules(self) -> Sequence[nn.Module]:
        """Convolution, or two, and norm."""
        return [self.child("stem")]

    @property
    def head_modules(self) -> Sequence[nn.Module]:
        """Norm, or none; pooling to classifier."""
        return [self.child("norm_pre"), self.child("head")]

    @property
    def classifiers(self) -> Sequence[nn.Module]:
        """The last layer of timm's head."""
        return [self.child("head").fc]

    def transition_modules(self, stage: int) -> Sequence[nn.Module]:
        """Norm and convolution; nothing before the first stage."""
        return [self.child("stages")[stage].downsample]

    def transition(self, stage: int, x: Tensor) -> Tensor:
        """[B, C, h, w] to half the resolution and the stage's channels."""
        return self.child("stages")[stage].downsample(x)

    def stem(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H/4, W/4]."""
        return self.child("stem")(x)

    def head(self, x: Tensor) -> Tensor:
        """Global average, norm and classifier: [B, C, h, w] to [B, num_classes]."""
        return self.child("head")(self.child("norm_pre")(x))
