"""timm's DenseNets (Huang et al. 2017) as staged networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.densenet import DenseNet as TimmDenseNet
from torch import Tensor, nn
from torch.func import functional_call

from .staged import StagedNetwork


class DenseNet(StagedNetwork):
    """A timm DenseNet, whose dense blocks are stages of layers. Its modules are taken over under their own
    names; state dicts fit timm unchanged.

    A layer hands on its input with its own channels behind. A subnet keeps the first layers of each dense
    block; the transition after it, or the head, reads the channels that are there. No layer has a shortcut
    that could stand for it: those after it need its channels.
    """

    def __init__(self, source: TimmDenseNet) -> None:
        """Take over `source`, which must not be used afterwards."""
        super().__init__()
        self.take_over(source)

    @property
    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The layers of denseblock1, denseblock2 and so on."""
        features = self.child("features").named_children()
        return [list(block.children()) for name, block in features if name.startswith("denseblock")]

    @property
    def stem_modules(self) -> Sequence[nn.Module]:
        """Convolution (or three) with batch norm and ReLU, max-pool."""
        features = dict(self.child("features").named_children())
        return list(features.values())[: list(features).index("denseblock1")]

    @property
    def head_modules(self) -> Sequence[nn.Module]:
        """Batch norm with ReLU, global pooling, dropout, classifier."""
        rest = [self.child(name) for name in ("global_pool", "head_drop", "classifier")]
        return [self.child("features").norm5, *rest]

    def transition_modules(self, stage: int) -> Sequence[nn.Module]:
        """Batch norm with ReLU, 1x1 convolution and pooling; nothing before the first dense block."""
        return list(getattr(self.child("features"), f"transition{stage}")) if stage else []

    def transition(self, stage: int, x: Tensor) -> Tensor:
        """[B, C, h, w] to half the resolution, and half the channels of the whole dense block before."""
        if stage == 0:
            return x
        norm, convolution, pool = self.transition_modules(stage)
        weight: Any = convolution.weight
        return pool(F.conv2d(_normalize(norm, x), weight[:, : x.shape[1]]))

    def has_shortcut(self, block: nn.Module) -> bool:
        """None has one."""
        return False

    def whole(self, block: nn.Module, x: Tensor) -> Tensor:
        """A layer: [B, C, h, w] to [B, C + growth, h, w]."""
        return torch.cat([x, block(x)], 1)

    def stem(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H/4, W/4]."""
        for module in self.stem_modules:
            x = module(x)
        return x

    def head(self, x: Tensor) -> Tensor:
        """Batch norm, global average and classifier: [B, C, h, w] to [B, num_classes]."""
        norm, pool, drop, classifier = self.head_modules
        weight: Any = classifier.weight
        pooled = drop(pool(_normalize(norm, x)))
        return F.linear(pooled, weight[:, : x.shape[1]], classifier.bias)  # type: ignore[arg-type]

    def keep(self, depths: Sequence[int]) -> None:
        """See `StagedNetwork.keep`; transitions and head lose the channels of the layers that go."""
        super().keep(depths)
        stages: list[Any] = list(self.stages)
        readers: list[Any] = [self.transition_modules(stage)[:2] for stage in range(1, len(stages))]
        for layers, (norm, linear) in zip(stages, [*readers, self.head_modules[::3]], strict=True):
            channels = layers[-1].norm1.num_features + layers[-1].conv2.out_channels
            for name, tensor in _leading(norm, channels).items():
                setattr(norm, name, _like(getattr(norm, name), tensor))
            linear.weight = _like(linear.weight, linear.weight[:, :channels])
            norm.num_features = channels


def _normalize(norm: nn.Module, x: Tensor) -> Tensor:
    """Batch norm of the channels that are there; its running statistics may be of so many alone."""
    if x.shape[1] == norm.num_features:
        return norm(x)
    return functional_call(norm, _leading(norm, x.shape[1]), (x,))


def _leading(norm: nn.Module, channels: int) -> dict[str, Tensor]:
    """A batch norm's tensors of its first channels."""
    tensors = [*norm.named_parameters(), *norm.named_buffers()]
    return {name: tensor[:channels] for name, tensor in tensors if tensor.ndim}


def _like(old: Tensor, tensor: Tensor) -> Tensor:
    """A copy of some of a tensor; of a parameter's as a parameter."""
    copy = tensor.detach().clone()
    return nn.Parameter(copy, old.requires_grad) if isinstance(old, nn.Parameter) else copy
