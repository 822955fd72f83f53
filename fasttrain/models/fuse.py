"""Batch norm, residual add and ReLU of a network's blocks and stem as fused operations.

Parameters and buffers keep their modules and names, so that state dicts fit the network as it was.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from .. import nvidia_apex
from ..kernels.batchnorm_act import batch_norm_act
from ..kernels.batchnorm_act_pool import batch_norm_act_pool
from ..kernels.runtime import Kernels
from .staged import StagedNetwork, batch_norms


class FusedBatchNorm(nn.BatchNorm2d):
    """Batch norm with what follows it: an optional residual add and ReLU.

    Attributes:
        relu: whether a ReLU follows.
        kernels: implementation of the operation.
    """

    def __init__(self, source: nn.BatchNorm2d, *, relu: bool, kernels: Kernels = "reference") -> None:
        """Take over `source`'s parameters, buffers and settings."""
        super().__init__(source.num_features, source.eps, source.momentum, device="meta")
        self.weight, self.bias = source.weight, source.bias
        self.running_mean, self.running_var = source.running_mean, source.running_var
        self.num_batches_tracked = source.num_batches_tracked
        self.training = source.training
        self.relu, self.kernels = relu, kernels

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[B, C, H, W] and a residual of the same shape to [B, C, H, W]; a scalar residual adds nothing."""
        mean, variance = self._running()
        return batch_norm_act(
            x,
            self.weight,
            self.bias,
            mean,
            variance,
            residual if residual is not None and residual.ndim else None,
            training=self.training,
            momentum=cast(float, self.momentum),
            eps=self.eps,
            relu=self.relu,
            kernels=self.kernels,
        )

    def _running(self) -> tuple[Tensor | None, Tensor | None]:
        """The running statistics that this pass reads or updates, as `nn.BatchNorm2d` decides it."""
        if not self.training:
            return self.running_mean, self.running_var
        if not self.track_running_stats:
            return None, None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return self.running_mean, self.running_var

    def extra_repr(self) -> str:
        """As `print(network)` shows it."""
        return f"{super().extra_repr()}, relu={self.relu}, kernels={self.kernels}"


class FusedBatchNormPool(FusedBatchNorm):
    """The stem's batch norm, ReLU and 3x3 max-pool of stride 2."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[B, C, H, W] to [B, C, H/2, W/2], rounded up."""
        mean, variance = self._running()
        return batch_norm_act_pool(
            x,
            self.weight,
            self.bias,
            mean,
            variance,
            training=self.training,
            momentum=cast(float, self.momentum),
            eps=self.eps,
            kernels=self.kernels,
        )


class ApexFusedBatchNorm(FusedBatchNorm):
    """The same by NVIDIA's groupbn: float16 on CUDA alone."""

    def __init__(self, source: nn.BatchNorm2d, *, relu: bool) -> None:
        """Take over `source`'s parameters, buffers and settings.

        Raises:
            ConfigError: apex is missing.
        """
        super().__init__(source, relu=relu)
        groupbn = nvidia_apex.load("model.batch_norm", "apex.contrib.groupbn", "BatchNorm2d_NHWC")
        self._groupbn: tuple[Any] = (groupbn(source.num_features, fuse_relu=relu),)  # no submodule of this

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[B, C, H, W] and a residual of the same shape to [B, C, H, W]; a scalar residual adds nothing."""
        (layer,) = self._groupbn
        mean, variance = self._running()
        if mean is None or variance is None:  # it always updates running statistics: let it have copies
            assert self.running_mean is not None
            assert self.running_var is not None
            mean, variance = self.running_mean.clone(), self.running_var.clone()
        layer.train(self.training)
        layer.weight, layer.bias, layer.momentum, layer.eps = self.weight, self.bias, self.momentum, self.eps
        layer.running_mean, layer.running_var = mean, variance
        # read by its backward, before which a step runs the layer again for other subnets
        layer.minibatch_mean, layer.minibatch_riv = torch.empty_like(mean), torch.empty_like(mean)
        arguments = [x] if residual is None or not residual.ndim else [x, residual]
        rows = [each.permute(0, 2, 3, 1).contiguous() for each in arguments]
        return layer(*rows).permute(0, 3, 1, 2)


class FusedBasicBlock(BasicBlock):
    """timm's basic block whose batch norms are fused ones."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.aa(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x), shortcut)


class FusedBottleneck(Bottleneck):
    """timm's bottleneck whose batch norms are fused ones."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x))
        x = self.aa(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x), shortcut)


_FUSED: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}


def fuse_batch_norms(network: StagedNetwork, implementation: str) -> int:
    """Replace what can be by fused operations, in place.

    Blocks of timm's `BasicBlock` and `Bottleneck` with ReLU and without attention, drop-path or drop-block;
    projection shortcuts; stems, with their 3x3 max-pool of stride 2 where they have one.
    Everything else stays as it is.

    Args:
        network: on its device already.
        implementation: `triton` (kernels of this project), `reference` (the same operations in plain
            PyTorch), `apex` (NVIDIA's groupbn).

    Returns:
        How many of the network's batch norms are fused now.
    """
    for stage in network.stages:
        for block in stage:
            if _is_plain(block):
                _fuse_block(block, implementation)
    _fuse_stem(network, implementation)
    return sum(isinstance(layer, FusedBatchNorm) for layer in batch_norms(network))


def _fused(source: nn.Module, implementation: str, *, relu: bool) -> FusedBatchNorm:
    assert isinstance(source, nn.BatchNorm2d)
    if implementation == "apex":
        return ApexFusedBatchNorm(source, relu=relu)
    return FusedBatchNorm(source, relu=relu, kernels=cast(Kernels, implementation))


def _can_fuse(layer: object) -> bool:
    """Plain batch norm with parameters, running statistics and a fixed momentum."""
    return (
        type(layer) is nn.BatchNorm2d
        and layer.affine
        and layer.running_mean is not None
        and layer.momentum is not None
    )


def _is_plain(block: nn.Module) -> bool:
    if type(block) not in _FUSED:
        return False
    norms = [layer for name, layer in block.named_children() if name.startswith("bn")]
    activations = [layer for name, layer in block.named_children() if name.startswith("act")]
    drops = isinstance(block.drop_block, nn.Identity) and block.drop_path is None and block.se is None
    return drops and all(map(_can_fuse, norms)) and all(isinstance(each, nn.ReLU) for each in activations)


def _fuse_block(block: nn.Module, implementation: str) -> None:
    for name, layer in list(block.named_children()):
        if name.startswith("bn"):
            setattr(block, name, _fused(layer, implementation, relu=True))
    shortcut = block.downsample
    if isinstance(shortcut, nn.Sequential) and _can_fuse(shortcut[-1]):
        shortcut[-1] = _fused(shortcut[-1], implementation, relu=False)
    block.__class__ = _FUSED[type(block)]  # its modules, parameters and hooks stay; its forward is another


def _fuse_sequence(layers: nn.Sequential, implementation: str) -> None:
    """Each batch norm that a ReLU follows, as in the deep stems of resnet*d."""
    for index, (layer, after) in enumerate(pairwise(list(layers))):
        if _can_fuse(layer) and isinstance(after, nn.ReLU):
            layers[index] = _fused(layer, implementation, relu=True)
            layers[index + 1] = nn.Identity()


def _fuse_stem(network: StagedNetwork, implementation: str) -> None:
    for layers in network.stem_modules:
        if isinstance(layers, nn.Sequential):
            _fuse_sequence(layers, implementation)
    if not (_can_fuse(network.bn1) and isinstance(network.act1, nn.ReLU)):
        return
    pools = implementation != "apex" and _is_stem_pool(getattr(network, "maxpool", None))
    if pools:
        network.bn1 = FusedBatchNormPool(network.bn1, relu=True, kernels=cast(Kernels, implementation))  # type: ignore[arg-type]
        network.maxpool = nn.Identity()
    else:
        network.bn1 = _fused(cast(nn.Module, network.bn1), implementation, relu=True)
    network.act1 = nn.Identity()


def _is_stem_pool(pool: object) -> bool:
    settings = (3, 2, 1, 1, False, False)
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return isinstance(pool, nn.MaxPool2d) and tuple(getattr(pool, name) for name in names) == settings
