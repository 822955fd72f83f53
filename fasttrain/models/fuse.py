"""Batch norm, residual add and ReLU of a network's blocks and stem as fused operations, and 1x1 convolutions.

Parameters and buffers keep their modules and names, so that state dicts fit the network as it was.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from .. import nvidia_apex
from ..kernels.batchnorm_act import batch_norm_act, batch_statistics
from ..kernels.batchnorm_act_conv1x1 import Norm, batch_norm_act_conv1x1
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
        self.training, self.track_running_stats = source.training, source.track_running_stats
        self.relu, self.kernels = relu, kernels

    @property
    def implementation(self) -> str:
        """What `fuse_batch_norms` was asked for."""
        return self.kernels

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[B, C, H, W] and a residual of the same shape to [B, C, H, W]; a scalar residual adds nothing."""
        return self._apply_to(x, residual)

    def _apply_to(
        self, x: Tensor, residual: Tensor | None, statistics: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
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
            statistics=statistics,
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

    @property
    def implementation(self) -> str:
        """What `fuse_batch_norms` was asked for."""
        return "apex"

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


class SharingBatchNorm(FusedBatchNorm):
    """A fused batch norm between 1x1 convolutions that do some of its work; see `fuse_convolutions`."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        residual: Tensor | None = None,
        *,
        statistics: tuple[Tensor, Tensor] | None = None,
        fold: bool = False,
    ) -> Tensor | Norm:
        """As `FusedBatchNorm`, or in training mode with less to do.

        Args:
            x: [B, C, H, W].
            residual: of the same shape; a scalar adds nothing.
            statistics: mean and biased variance [1, C] of x, where the convolution before gathered them.
            fold: take x's statistics, and leave it to the next convolution to normalize by the result.
        """
        if not fold:
            return self._apply_to(x, residual, statistics)
        momentum = cast(float, self.momentum)
        moments = batch_statistics(x, *self._running(), momentum=momentum, eps=self.eps, kernels=self.kernels)
        return Norm(self.weight, self.bias, *moments)


class FusedBasicBlock(BasicBlock):
    """timm's basic block whose batch norms are fused ones."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.aa(self.bn1(self.conv1(x)))
        return _join(self.bn2, self.conv2(x), shortcut, self.drop_path)


class FusedBottleneck(Bottleneck):
    """timm's bottleneck whose batch norms are fused ones."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x))
        x = self.aa(self.bn2(self.conv2(x)))
        return _join(self.bn3, self.conv3(x), shortcut, self.drop_path)


class SharingBottleneck(FusedBottleneck):
    """The same whose 1x1 convolutions gather the next batch norm's statistics, and the last does bn2 too."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the block's output; in evaluation mode nothing is shared."""
        if not all(norm.training for norm in (self.bn1, self.bn2, self.bn3)):
            return super().forward(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        x, statistics = _convolve(x, self.conv1, self.bn1)
        x = self.conv2(self.bn1(x, statistics=statistics))
        x, statistics = _convolve(x, self.conv3, self.bn3, self.bn2(x, fold=True))
        return _join(self.bn3, x, shortcut, self.drop_path, statistics=statistics)


class SharingProjection(nn.Sequential):
    """A projection shortcut whose 1x1 convolution gathers the statistics of the batch norm after it."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the block's shape; in evaluation mode nothing is shared."""
        layers: list[Any] = list(self)
        *before, conv, norm = layers
        if not norm.training:
            return super().forward(x)
        for layer in before:  # the average pool of resnet*d
            x = layer(x)
        x, statistics = _convolve(x, conv, norm)
        return norm(x, statistics=statistics)


def _join(
    norm: FusedBatchNorm, x: Tensor, shortcut: Tensor, drop_path: nn.Module | None, **options: Any
) -> Tensor:
    """A block's last batch norm, residual add and ReLU: one operation unless a pass has drop-path between."""
    if drop_path is None:
        return norm(x, shortcut, **options)
    norm.relu = False
    try:
        x = norm(x, **options)
    finally:
        norm.relu = True
    return F.relu(shortcut + drop_path(x))


def _convolve(
    x: Tensor, conv: nn.Conv2d, after: FusedBatchNorm, norm: Norm | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A 1x1 convolution of x, normalized by `norm` first, and the statistics for the batch norm after it."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:  # as autocast treats a convolution
        x = x.to(torch.get_autocast_dtype(device))
    y, mean, variance = batch_norm_act_conv1x1(
        x, conv.weight, norm, stride=conv.stride[0], kernels=after.kernels
    )
    assert mean is not None
    assert variance is not None
    return y, (mean, variance)


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

    Raises:
        ValueError: an unknown implementation, or a network that is fused by another one.
    """
    if implementation not in ("triton", "reference", "apex"):
        raise ValueError(f"implementation is {implementation!r}; allowed: triton, reference, apex")
    before = {layer.implementation for layer in batch_norms(network) if isinstance(layer, FusedBatchNorm)}
    if before - {implementation}:
        raise ValueError(f"implementation is {implementation!r}; the network is fused by {before.pop()!r}")
    for stage in network.stages:
        for block in stage:
            if _is_plain(block):
                _fuse_block(block, implementation)
    _fuse_stem(network, implementation)
    return sum(isinstance(layer, FusedBatchNorm) for layer in batch_norms(network))


def fuse_convolutions(network: StagedNetwork) -> int:
    """Let the 1x1 convolutions of bottlenecks do some of their batch norms' work in training mode, in place.

    Each gathers the statistics of the batch norm after it; a bottleneck's last also does the batch norm and
    ReLU before it, whose output is never stored. Not where something is between, nor in other blocks.

    Args:
        network: after `fuse_batch_norms` with `triton` or `reference`, which the convolutions use too.

    Returns:
        How many of the network's convolutions are fused now.
    """
    for stage in network.stages:
        for block in stage:
            if _can_share(block):
                _share(block)
    blocks = [block for stage in network.stages for block in stage if isinstance(block, SharingBottleneck)]
    return sum(2 + isinstance(block.downsample, SharingProjection) for block in blocks)


def _fused(source: nn.Module, implementation: str, *, relu: bool) -> FusedBatchNorm:
    assert isinstance(source, nn.BatchNorm2d)
    if implementation == "apex":
        return ApexFusedBatchNorm(source, relu=relu)
    return FusedBatchNorm(source, relu=relu, kernels=cast(Kernels, implementation))


def _can_fuse(layer: object) -> bool:
    """Plain batch norm with parameters, running statistics and a fixed momentum, and no hooks."""
    return (
        type(layer) is nn.BatchNorm2d
        and layer.affine
        and layer.running_mean is not None
        and layer.num_batches_tracked is not None
        and layer.momentum is not None
        and not _has_hooks(layer)
    )


def _is_relu(layer: object) -> bool:
    return type(layer) is nn.ReLU and not _has_hooks(layer)


def _has_hooks(layer: nn.Module) -> bool:
    """Whether somebody watches the layer, who would see nothing of a fused one."""
    names = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(layer, f"_{name}") for name in names)


def _is_plain(block: nn.Module) -> bool:
    if type(block) not in _FUSED:
        return False
    norms = [layer for name, layer in block.named_children() if name.startswith("bn")]
    activations = [layer for name, layer in block.named_children() if name.startswith("act")]
    drops = isinstance(block.drop_block, nn.Identity) and block.drop_path is None and block.se is None
    return drops and all(map(_can_fuse, norms)) and all(map(_is_relu, activations))


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
        if _can_fuse(layer) and _is_relu(after):
            layers[index] = _fused(layer, implementation, relu=True)
            layers[index + 1] = nn.Identity()


def _fuse_stem(network: StagedNetwork, implementation: str) -> None:
    for layers in network.stem_modules:
        if isinstance(layers, nn.Sequential):
            _fuse_sequence(layers, implementation)
    norm, activation = (getattr(network, name, None) for name in ("bn1", "act1"))
    if not (_can_fuse(norm) and _is_relu(activation)):
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
    if type(pool) is not nn.MaxPool2d or _has_hooks(pool):
        return False
    return tuple(getattr(pool, name) for name in names) == settings


def _can_share(block: nn.Module) -> bool:
    if type(block) is not FusedBottleneck:
        return False
    norms = (block.bn1, block.bn2, block.bn3)
    plain = all(type(norm) is FusedBatchNorm for norm in norms) and isinstance(block.aa, nn.Identity)
    return plain and all(_is_1x1(conv) and conv.stride == (1, 1) for conv in (block.conv1, block.conv3))


def _is_1x1(conv: object) -> bool:
    """A plain 1x1 convolution of any stride."""
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)
        and conv.stride[0] == conv.stride[1]
        and conv.bias is None
    )


def _share(block: nn.Module) -> None:
    norms = [block.bn1, block.bn2, block.bn3]
    shortcut = block.downsample
    if type(shortcut) is nn.Sequential and _is_1x1(shortcut[-2]) and type(shortcut[-1]) is FusedBatchNorm:
        norms.append(shortcut[-1])
        shortcut.__class__ = SharingProjection
    for norm in norms:
        norm.__class__ = SharingBatchNorm
    block.__class__ = SharingBottleneck
