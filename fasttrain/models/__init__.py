"""Networks as stem, stages of residual blocks, and head; one file per family."""

from __future__ import annotations

from ..errors import ConfigError
from .auxiliary import AuxiliaryClassifiers, build_classifiers
from .backbone import staged_view
from .cifar_resnet import CIFAR_RESNETS, CifarResNet
from .fuse import FusedBatchNorm, fuse_batch_norms, fuse_convolutions
from .mobilenetv3 import CIFAR_MOBILENETS, MobileNetV3, create_mobilenetv3, is_mobilenetv3
from .resnet import ResNet, create_timm_resnet, is_timm_resnet
from .staged import (
    StagedNetwork,
    TreeForward,
    TreeWalk,
    batch_norms,
    frozen_statistics,
    initialize,
)
from .survival import Survival, set_survival, survivals

MODEL_FORMS = (
    "a timm ResNet (resnet18 ... resnet152, resnext50_32x4d, resnet50d, ...) or MobileNetV3 "
    f"(mobilenetv3_large_100, mobilenetv3_small_100, ...), {', '.join([*CIFAR_RESNETS, *CIFAR_MOBILENETS])}"
)


def create_model(name: str, num_classes: int) -> StagedNetwork:
    """A network with random weights: ResNets initialized as the published ST code does, MobileNetV3 (which
    it lacks) as timm does.

    Args:
        name: a timm ResNet's or MobileNetV3's name, cifar_resnet20, 32, 44, 56, 110 or
            cifar_mobilenetv3_large.
        num_classes: outputs of the classifier, at least 1.

    Raises:
        ConfigError: an unknown name.
    """
    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; allowed: at least 1")
    network: StagedNetwork
    if is_mobilenetv3(name):
        network = create_mobilenetv3(name, num_classes)
    elif name in CIFAR_RESNETS:
        network = CifarResNet(CIFAR_RESNETS[name], num_classes)
    elif is_timm_resnet(name):
        network = create_timm_resnet(name, num_classes)
    else:
        raise ConfigError(f"model.name is {name!r}; allowed: {MODEL_FORMS}")
    if not isinstance(network, MobileNetV3):
        initialize(network)
    network.name = name
    return network


__all__ = [
    "AuxiliaryClassifiers",
    "CifarResNet",
    "FusedBatchNorm",
    "MobileNetV3",
    "ResNet",
    "StagedNetwork",
    "Survival",
    "TreeForward",
    "TreeWalk",
    "batch_norms",
    "build_classifiers",
    "create_model",
    "frozen_statistics",
    "fuse_batch_norms",
    "fuse_convolutions",
    "initialize",
    "set_survival",
    "staged_view",
    "survivals",
]
