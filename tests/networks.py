"""Small residual networks for tests."""

from __future__ import annotations

import torch

from fasttrain.models import ResNet, StagedNetwork, initialize


def tiny_resnet(
    layers: tuple[int, ...], *, bottleneck: bool = False, classes: int = 7, seed: int = 0
) -> StagedNetwork:
    """A timm ResNet of given blocks per stage, 8 to 8 * 2^(stages - 1) channels wide, in float64."""
    from timm.models import resnet

    torch.manual_seed(seed)
    source = resnet.ResNet(
        resnet.Bottleneck if bottleneck else resnet.BasicBlock,
        layers,
        num_classes=classes,
        channels=tuple(8 * 2**stage for stage in range(len(layers))),
    )
    network = ResNet(source)
    initialize(network)
    return network.double()


def tiny_images(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Random images [count, 3, side, side], float64."""
    return torch.randn(
        count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
