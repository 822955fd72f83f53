"""timm's Swin transformers (Liu et al. 2021) as staged networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.swin_transformer import SwinTransformer as TimmSwinTransformer
from torch import Tensor, nn

from .drop import Mask
from .mask_token import MaskToken
from .staged import StagedNetwork


class SwinTransformer(StagedNetwork):
    """A timm Swin transformer, on maps [B, h, w, C]. Its modules are taken over under their own names; state
    dicts fit timm unchanged.

    Patch merging is a stage's transition. Windows of images of other sides keep their size and are padded, as
    timm's `dynamic_img_size` does.
    """

    mask_rounds_up = True

    def __init__(self, source: TimmSwinTransformer) -> None:
        """Take over `source`, made with `dynamic_img_size`, which must not be used afterwards."""
        super().__init__()
        self.take_over(source)
        self.multiple = self.child("patch_embed").patch_size[0]

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The blocks of layers.0, layers.1 and so on."""
        return [stage.blocks for stage in self.child("layers")]

    @property
    def stem_modules(self) -> Sequence[nn.Module]:
        """Patch embedding."""
        return [self.child("patch_embed")]

    @property
    def head_modules(self) -> Sequence[nn.Module]:
        """Norm; pooling and classifier."""
        return [self.child("norm"), self.child("head")]

    @property
    def classifiers(self) -> Sequence[nn.Module]:
        """The last layer of timm's head."""
        return [self.child("head").fc]

    def transition_modules(self, stage: int) -> Sequence[nn.Module]:
        """Patch merging; nothing before the first stage."""
        return [self.child("layers")[stage].downsample]

    def transition(self, stage: int, x: Tensor) -> Tensor:
        """[B, h, w, C] to half the resolution and the stage's channels."""
        return self.child("layers")[stage].downsample(x)

    def stem(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, H/4, W/4, C]."""
        return self.child("patch_embed")(x)

    def mask_token(self) -> MaskToken:
        """In place of the patches that a mask hides."""
        return MaskToken(self.child("patch_embed").proj.out_channels)

    def masked_stem(self, x: Tensor, mask: Mask) -> Tensor:
        """As `stem`; hidden patches become the mask's token, where it has one, or else zeros of the image."""
        if mask.token is None:
            return super().masked_stem(x, mask)
        x = self.stem(x)
        return torch.where(mask.visible(*x.shape[1:3])[..., None], x, mask.token.to(x.dtype))

    def head(self, x: Tensor) -> Tensor:
        """Norm, global average and classifier: [B, h, w, C] to [B, num_classes]."""
        return self.child("head")(self.child("norm")(x))

    def feature_map(self, x: Tensor) -> Tensor:
        """[B, h, w, C] as [B, C, h, w]."""
        return x.permute(0, 3, 1, 2)
