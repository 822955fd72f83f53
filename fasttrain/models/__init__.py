"""Networks as stem, stages of residual blocks, and head; one file per family."""

from __future__ import annotations

from ..errors import ConfigError
from .cifar_resnet import CIFAR_RESNETS, CifarResNet
from .fuse import FusedBatchNorm, fuse_batch_norms, fuse_convolutions
from .resnet import ResNet, create_timm_resnet, is_timm_resnet
from .staged import (
    StagedNetwork,
    TreeForward,
    TreeWalk,
    batch_norms,
    frozen_statistics,
    initialize,
)

MODEL_FORMS = (
    f"a timm ResNet (resnet18 ... resnet152, resnext50_32x4d, resnet50d, ...) or {', '.join(CIFAR_RESNETS)}"
)


def create_model(name: str, num_classes: int) -> StagedNetwork:
    """A network with random weights, initialized as the published ST code does.

    Args:
        name: a timm ResNet's name, or cifar_resnet20, 32, 44, 56, 110.
        num_classes: outputs of the classifier, at least 1.

    Raises:
        ConfigError: an unknown name.
    """
    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; allowed: at least 1")
    if name in CIFAR_RESNETS:
        network: StagedNetwork = CifarResNet(CIFAR_RESNETS[name], num_classes)
    elif is_timm_resnet(name):
        network = create_timm_resnet(name, num_classes)
    else:
        raise ConfigError(f"model.name is {name!r}; allowed: {MODEL_FORMS}")
    initialize(network)
    return network


__all__ = [
    "CifarResNet",
    "FusedBatchNorm",
    "ResNet",
    "StagedNetwork",
    "TreeForward",
    "TreeWalk",
    "batch_norms",
    "create_model",
    "frozen_statistics",
    "fuse_batch_norms",
    "fuse_convolutions",
    "initialize",
]
