"""timm's ViT and DeiT (Dosovitskiy et al. 2021; Touvron et al. 2021 and 2022) as staged networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from timm.layers import global_pool_nlc, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from .drop import Mask
from .staged import StagedNetwork


class VisionTransformer(StagedNetwork):
    """A timm vision transformer: one stage of blocks on tokens [B, N, C], the prefix (class, distillation and
    register tokens) first. Its modules are taken over under their own names; state dicts fit timm unchanged.

    For images of other sides than the network was made for, its position embeddings are interpolated
    (bicubic, antialiased), as timm's `dynamic_img_size` does.
    """

    mask_rounds_up = True

    def __init__(self, source: TimmVisionTransformer) -> None:
        """Take over `source`, made with `dynamic_img_size`, which must not be used afterwards."""
        super().__init__()
        self.take_over(source)
        self.mask_square = self.multiple = self.reduction = self.child("patch_embed").patch_size[0]
        self.no_embed_class, self.global_pool = source.no_embed_class, source.global_pool
        self.pool_include_prefix = source.pool_include_prefix

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """All blocks as one stage."""
        return [self.child("blocks")]

    @property
    def stem_modules(self) -> Sequence[nn.Module]:
        """Patch embedding; what may follow the position embeddings: dropouts, norm."""
        return [self.child(name) for name in ("patch_embed", "pos_drop", "patch_drop", "norm_pre")]

    @property
    def head_modules(self) -> Sequence[nn.Module]:
        """Norms before and after the pooling, which may be one by attention; dropout, classifiers."""
        names = ("norm", "attn_pool", "fc_norm", "head_drop")
        return [*(self.child(name) for name in names if name in self._modules), *self.classifiers]

    @property
    def classifiers(self) -> Sequence[nn.Module]:
        """One; of distilled networks the class token's and the distillation token's."""
        return [self.child(name) for name in ("head", "head_dist") if name in self._modules]

    @property
    def prefix(self) -> list[nn.Parameter]:
        """The tokens [1, n, C] before those of the patches."""
        own = self._parameters
        return [own[name] for name in ("cls_token", "dist_token", "reg_token") if name in own]  # type: ignore[misc]

    @property
    def prefix_tokens(self) -> int:
        """How many tokens come before those of the patches."""
        return sum(token.shape[1] for token in self.prefix)

    def stem(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to tokens [B, N, C]."""
        embed, *rest = self.stem_modules
        x = embed(x)  # [B, h, w, C]
        size, x = list(x.shape[1:3]), x.flatten(1, 2)
        prefix = [token.expand(len(x), -1, -1) for token in self.prefix]
        if self.no_embed_class:  # position embeddings are for the patches alone
            x = torch.cat([*prefix, x + self._positions(size, 0)], 1)
        else:
            x = torch.cat([*prefix, x], 1) + self._positions(size, self.prefix_tokens)
        for module in rest:
            x = module(x)
        return x

    def masked_stem(self, x: Tensor, mask: Mask) -> Tensor:
        """As `stem`, but the patches that a mask hides leave the sequence: [B, 3, H, W] to [B, n, C]."""
        x = self.stem(x)
        prefix, patches = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :]
        kept = mask.kept[:, :, None].expand(-1, -1, x.shape[2])
        return torch.cat([prefix, patches.gather(1, kept)], 1)

    def _positions(self, size: list[int], prefix: int) -> Tensor:
        """Embeddings [1, N, C] of a grid of patches, after those of `prefix` tokens."""
        own = self.child("patch_embed").grid_size
        embeddings = self._parameters["pos_embed"]
        return resample_abs_pos_embed(embeddings, size, own, num_prefix_tokens=prefix)

    def head(self, x: Tensor) -> Tensor:
        """Norm, pooling and classifier: [B, N, C] to [B, num_classes]; of two classifiers the mean."""
        x = self.child("norm")(x)
        pooled = [x[:, 0], x[:, 1]] if len(self.classifiers) > 1 else [self._pool(x)]
        pooled = [self.child("head_drop")(self.child("fc_norm")(each)) for each in pooled]
        logits = [classifier(each) for classifier, each in zip(self.classifiers, pooled, strict=True)]
        return logits[0] if len(logits) == 1 else (logits[0] + logits[1]) / 2

    def _pool(self, x: Tensor) -> Tensor:
        """One vector [B, C] of the tokens."""
        if "attn_pool" in self._modules:
            return self.child("attn_pool")(x if self.pool_include_prefix else x[:, self.prefix_tokens :])
        return global_pool_nlc(x, self.global_pool, self.prefix_tokens, self.pool_include_prefix)

    def feature_map(self, x: Tensor) -> Tensor:
        """The tokens of a square image's patches as [B, C, h, w].

        Raises:
            ValueError: tokens that fill no square.
        """
        patches = x.shape[1] - self.prefix_tokens
        side = math.isqrt(patches)
        if side * side != patches:
            raise ValueError(f"the images have {patches} patches; allowed: those of square images")
        return x[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, (side, side))
