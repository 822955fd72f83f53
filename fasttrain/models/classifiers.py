"""Classifiers of a network's blocks, for training alone: no part of the network, nor of what is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..subnets import BlockRef, PrefixTree
from .auxiliary import Auxiliary
from .drop import Drop
from .resnet import average
from .staged import StagedNetwork, TreeWalk, initialize


class AuxiliaryClassifiers(Auxiliary):
    """A classifier for each of some blocks of the main network, on the block's output [B, C, h, w]."""

    def __init__(self, classifiers: Mapping[BlockRef, nn.Module]) -> None:
        """Take the classifiers: modules from [B, C, h, w] to logits [B, num_classes]."""
        super().__init__()
        self.refs = tuple(classifiers)
        self.classifiers = nn.ModuleList(classifiers.values())

    def run(
        self,
        network: StagedNetwork,
        inputs: Sequence[Tensor],
        trees: Sequence[PrefixTree],
        drops: Sequence[Drop | None],
    ) -> list[list[Tensor]]:
        """Logits [B, num_classes] of the main network on the first input, then of each classifier."""
        classifiers = dict(zip(self.refs, self.classifiers, strict=True))
        walk = _Walk(network, trees[0], inputs[0], classifiers)
        return [[*walk.finish(), *(walk.auxiliary[ref] for ref in self.refs)]]


class _Walk(TreeWalk):
    """The main network's pass, whose blocks' outputs go to their classifiers as they come."""

    def __init__(
        self, network: StagedNetwork, tree: PrefixTree, x: Tensor, classifiers: Mapping[BlockRef, nn.Module]
    ) -> None:
        self.classifiers = classifiers
        self.auxiliary: dict[BlockRef, Tensor] = {}
        super().__init__(network, tree, x, tracked=True)

    def _take(self, index: int, x: Tensor) -> None:
        super()._take(index, x)
        ref, _ = self.tree.nodes[index]
        if ref in self.classifiers:
            self.auxiliary[ref] = self.classifiers[ref](self.network.feature_map(x))


class _Pool(nn.Module):
    """Mean over the pixels, [B, C, h, w] to [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return average(x)


def classifier(channels: int, classes: int) -> nn.Module:
    """A bottleneck, global average and a linear layer: [B, channels, h, w] to [B, classes].

    The bottleneck's convolutions are 1x1, 3x3 and 1x1 with a quarter of the channels between, as a ResNet's,
    each with batch norm (of the batch alone: it is not evaluated) and ReLU.
    """
    width = max(1, channels // 4)
    layers: list[nn.Module] = []
    for before, after, side in ((channels, width, 1), (width, width, 3), (width, channels, 1)):
        norm = nn.BatchNorm2d(after, track_running_stats=False)
        layers += [nn.Conv2d(before, after, side, padding=side // 2, bias=False), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, _Pool(), nn.Linear(channels, classes))


def build_classifiers(network: StagedNetwork, kind: str, side: int) -> AuxiliaryClassifiers:
    """The classifiers that a method trains, initialized as the network's own, on its device.

    The deepest classifier is the network's own: none is made for the last block.

    Args:
        network: on its device.
        kind: `layers`: one for each block; `stages`: one for each stage's last block.
        side: of training images, pixels.

    Raises:
        ConfigError: a network of one block, or of one stage.
    """
    shapes = _output_shapes(network, side)
    *refs, _ = shapes
    if kind == "stages":
        refs = [ref for ref in refs if ref.block == network.depths[ref.stage] - 1]
    if not refs:
        raise ConfigError(
            f"{network.title} has {network.depths} blocks per stage; allowed for a "
            f"classifier before its own: two or more {kind}"
        )
    made = AuxiliaryClassifiers({ref: classifier(shapes[ref][1], network.num_classes) for ref in refs})
    initialize(made)
    like = next(network.parameters())
    return made.to(device=like.device, dtype=like.dtype)


def _output_shapes(network: StagedNetwork, side: int) -> dict[BlockRef, torch.Size]:
    """Of one image, by block in order; the network runs once, and is as before."""
    like, training = next(network.parameters()), network.training
    x, shapes = torch.zeros(1, 3, side, side, device=like.device, dtype=like.dtype), {}
    network.eval()
    try:
        with torch.no_grad():
            x = network.stem(x)
            for ref in network.full:
                x = network.run_block(ref, x)
                shapes[ref] = network.feature_map(x).shape
    finally:
        network.train(training)
    return shapes
