"""Small networks for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fasttrain.models import MobileNetV3, ResNet, StagedNetwork, SwinTransformer, initialize


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


def tiny_mobilenet(layers: tuple[int, ...], *, classes: int = 7, seed: int = 0) -> StagedNetwork:
    """A timm MobileNetV3 of given blocks per stage, 8 to 8 * 2^(stages - 1) channels wide, in float64."""
    from timm.models import mobilenetv3
    from timm.models._efficientnet_builder import decode_arch_def

    torch.manual_seed(seed)
    stages = [
        [f"ir_r{blocks}_k3_s{min(2, stage + 1)}_e2_c{8 * 2**stage}_se0.25"]
        for stage, blocks in enumerate(layers)
    ]
    source = mobilenetv3.MobileNetV3(
        decode_arch_def([*stages, ["cn_r1_k1_s1_c32"]]),
        num_classes=classes,
        stem_size=8,
        num_features=32,
        act_layer=nn.Hardswish,
    )
    return MobileNetV3(source).double()


def tiny_swin(*, seed: int = 0) -> StagedNetwork:
    """A timm Swin of two stages of two blocks on 8 x 8 patches of 4 pixels, windows of 4 x 4, ten classes,
    in float64.
    """
    from timm.models.swin_transformer import SwinTransformer as Source

    torch.manual_seed(seed)
    size: dict[str, Any] = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (2, 2)}
    source = Source(**size, num_heads=(1, 2), num_classes=10, drop_path_rate=0.0, strict_img_size=False)
    return SwinTransformer(source).double()


TINY: dict[str, Callable[[tuple[int, ...]], StagedNetwork]] = {
    "resnet": tiny_resnet,
    "mobilenet": tiny_mobilenet,
}
"""One tiny network of each family."""


def tiny_images(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Random images [count, 3, side, side], float64."""
    return torch.randn(
        count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
