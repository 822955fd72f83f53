"""timm's PVT v2 (Wang et al. 2022) as staged networks."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, nn

from .staged import StagedNetwork


class PyramidTransformer(StagedNetwork):
    """A timm PVT v2, on maps [B, h, w, C]. Its modules are taken over under their own names; state dicts fit
    timm unchanged.

    The norm that ends a stage and the patch embedding of the next are the next one's transition. There are no
    position embeddings: images may be of any size.
    """

    def __init__(self, source: PyramidVisionTransformerV2) -> None:
        """Take over `source`, which must not be used afterwards."""
        super().__init__()
        self.take_over(source)

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The blocks of stages.0, stages.1 and so on."""
        return [stage.blocks for stage in self.child("stages")]

    @property
    def stem_modules(self) -> Sequence[nn.Module]:
        """Overlapping patch embedding."""
        return [self.child("patch_embed")]

    @property
    def head_modules(self) -> Sequence[nn.Module]:
        """Norm of the last stage, dropout, classifier."""
        return [self.child("stages")[-1].norm, self.child("head_drop"), self.child("head")]

    def transition_modules(self, stage: int) -> Sequence[nn.Module]:
        """Norm of the stage before, patch embedding; nothing before the first stage."""
        stages = self.child("stages")
        return [stages[stage - 1].norm, stages[stage].downsample] if stage else []

    def transition(self, stage: int, x: Tensor) -> Tensor:
        """[B, h, w, C] to half the resolution and the stage's channels."""
        if stage == 0:
            return x
        norm, embed = self.transition_modules(stage)
        return embed(_channels_first(norm(x)))

    def whole(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block, which works on tokens."""
        return block(x.flatten(1, 2), x.shape[1:3]).view(x.shape)

    def stem(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, H/4, W/4, C]."""
        return self.child("patch_embed")(x)

    def head(self, x: Tensor) -> Tensor:
        """Norm, global average and classifier: [B, h, w, C] to [B, num_classes]."""
        norm, drop, classifier = self.head_modules
        return classifier(drop(_channels_first(norm(x)).mean((-1, -2))))

    def feature_map(self, x: Tensor) -> Tensor:
        """[B, h, w, C] as [B, C, h, w]."""
        return x.permute(0, 3, 1, 2)


def _channels_first(x: Tensor) -> Tensor:
    """[B, h, w, C] to contiguous [B, C, h, w], as timm hands maps on."""
    return x.permute(0, 3, 1, 2).contiguous()
