"""Networks as stem, stages of residual blocks, and head; one file per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, instead
from . import mobilenetv3
from .auxiliary import Auxiliary
from .backbone import staged_view
from .cifar_resnet import CIFAR_BOTTLENECKS, CIFAR_RESNETS, CifarResNet, create_cifar_bottleneck
from .classifiers import AuxiliaryClassifiers, build_classifiers
from .convnext import ConvNeXt
from .densenet import DenseNet
from .drop import Drop, DropKind, Mask, kinds_of_drop
from .drop_path import set_drop_path
from .fuse import FusedBatchNorm, fuse_batch_norms, fuse_convolutions
from .mask_token import MaskToken
from .mobilenetv3 import CIFAR_MOBILENETS, MobileNetV3, create_mobilenetv3, is_mobilenetv3
from .pvt import PyramidTransformer
from .regnet import RegNet
from .resnet import ResNet
from .staged import (
    StagedNetwork,
    TreeForward,
    TreeWalk,
    batch_norms,
    frozen_statistics,
    initialize,
)
from .swin import SwinTransformer
from .vit import VisionTransformer


@dataclass(frozen=True, slots=True)
class _Family:
    """What timm's models of one of its modules become.

    Attributes:
        network: takes such a model over.
        examples: its name, and those of some.
        options: that timm makes them with.
    """

    network: Callable[[Any], StagedNetwork]
    examples: str
    options: Mapping[str, Any] = field(default_factory=dict)


_DYNAMIC = {"dynamic_img_size": True}
_FAMILIES = {
    "resnet": _Family(ResNet, "ResNet (resnet18 ... resnet152, resnext50_32x4d, resnet50d, ...)"),
    "vision_transformer": _Family(VisionTransformer, "ViT (vit_small_patch16_224, ...)", _DYNAMIC),
    "deit": _Family(VisionTransformer, "DeiT (deit3_small_patch16_224, ...)", _DYNAMIC),
    "convnext": _Family(ConvNeXt, "ConvNeXt (convnext_tiny, ...)"),
    "regnet": _Family(RegNet, "RegNet (regnety_016, ...)"),
    "swin_transformer": _Family(
        SwinTransformer, "Swin (swin_tiny_patch4_window7_224, ...)", {**_DYNAMIC, "drop_path_rate": 0.0}
    ),
    "pvt_v2": _Family(PyramidTransformer, "PVT v2 (pvt_v2_b2, ...)"),
    "densenet": _Family(DenseNet, "DenseNet (densenet121, ...)"),
}
"""timm's module to what its models become."""
_LAYER_SCALE = 1e-4
"""First value of DeiT III's layer scale (Touvron et al. 2022); timm's is 1e-6."""

MODEL_FORMS = (
    f"a timm {', '.join(family.examples for family in _FAMILIES.values())} or MobileNetV3 "
    f"(mobilenetv3_large_100, ...), {', '.join([*CIFAR_RESNETS, *CIFAR_BOTTLENECKS, *CIFAR_MOBILENETS])}"
)


def create_model(name: str, num_classes: int) -> StagedNetwork:
    """A network with random weights: ResNets initialized as the published ST code does, others as timm does,
    but for DeiT III's layer scale, which starts as its paper has it.

    Drop path, which some families have by default, is off.

    Args:
        name: of a timm model, without a tag of pre-trained weights (see `MODEL_FORMS`), cifar_resnet20, 32,
            44, 56, 110, cifar_resnet50 or cifar_mobilenetv3_large.
        num_classes: outputs of the classifier, at least 1.

    Raises:
        ConfigError: an unknown name.
    """
    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; allowed: at least 1")
    network = _create(name, num_classes)
    if isinstance(network, ResNet | CifarResNet):
        initialize(network)
    network.name = name
    return network


def _create(name: str, num_classes: int) -> StagedNetwork:
    import timm

    if is_mobilenetv3(name):
        return create_mobilenetv3(name, num_classes)
    if name in CIFAR_BOTTLENECKS:
        return create_cifar_bottleneck(name, num_classes)
    if name in CIFAR_RESNETS:
        return CifarResNet(CIFAR_RESNETS[name], num_classes)
    for module, family in _FAMILIES.items():
        if name in timm.list_models(module=module):
            options = {
                **family.options,
                **({"init_values": _LAYER_SCALE} if name.startswith("deit3_") else {}),
            }
            source = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
            return family.network(source)
    names = [*CIFAR_RESNETS, *CIFAR_BOTTLENECKS, *CIFAR_MOBILENETS, *mobilenetv3.timm_names()]
    for module in _FAMILIES:
        names += timm.list_models(module=module)
    raise ConfigError(f"model.name is {name!r}; {instead(name, names, forms=MODEL_FORMS)}")


__all__ = [
    "Auxiliary",
    "AuxiliaryClassifiers",
    "CifarResNet",
    "ConvNeXt",
    "DenseNet",
    "Drop",
    "DropKind",
    "FusedBatchNorm",
    "Mask",
    "MaskToken",
    "MobileNetV3",
    "PyramidTransformer",
    "RegNet",
    "ResNet",
    "StagedNetwork",
    "SwinTransformer",
    "TreeForward",
    "TreeWalk",
    "VisionTransformer",
    "batch_norms",
    "build_classifiers",
    "create_model",
    "frozen_statistics",
    "fuse_batch_norms",
    "fuse_convolutions",
    "initialize",
    "kinds_of_drop",
    "set_drop_path",
    "staged_view",
]
