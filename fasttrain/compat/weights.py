"""Weights under other programs' names. Ours are timm's, which for ResNets are torchvision's as well.

A form is a table from our modules' names to another program's, read both ways: the published NIPS22-ST code's
(`models/resnet_randwidth.py`, behind DataParallel), and torchvision's MobileNetV3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from ..models import StagedNetwork
from ..models.cifar_resnet import CIFAR_BOTTLENECKS, CIFAR_RESNETS
from ..models.mobilenetv3 import CIFAR_MOBILENETS
from ..subnets import Depths

PUBLISHED_DEPTHS: tuple[Depths, ...] = ((3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3))
"""Blocks per stage of the published code's networks: ResNet-50, 101 and 152."""

TORCHVISION_RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
"""torchvision's ResNets, whose names and modules are timm's."""

TORCHVISION_MOBILENETS = {
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "mobilenetv3_small_100": "mobilenet_v3_small",
}
"""timm's name to torchvision's."""

_BLOCK = re.compile(r"((?:layer|blocks\.)\d+\.\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class _Form:
    """Names of modules as `features.0` (stem), `features.1` ... (blocks, counted through), `classifier`.

    Attributes:
        outside: our modules outside of the blocks, and theirs.
        inside: a block's modules, in order, to theirs.
        eps: of their batch norms; None: as ours.
    """

    outside: Mapping[str, str]
    inside: Callable[[Sequence[str]], dict[str, str]]
    eps: float | None = None

    def names(self, ours: Iterable[str]) -> dict[str, str]:
        """Our tensors' names, in the order of a network's state dict, to theirs."""
        ours = list(ours)
        blocks: dict[str, dict[str, None]] = {}
        for name in ours:
            found = _BLOCK.match(name.rpartition(".")[0])
            if found:
                blocks.setdefault(found[1], {})[found[2]] = None
        modules = dict(self.outside)
        for number, (block, parts) in enumerate(blocks.items(), start=1):
            for part, place in self.inside(list(parts)).items():
                modules[f"{block}.{part}"] = f"features.{number}.{place}"
        split = [(name, *name.rpartition(".")) for name in ours]
        return {name: f"{modules.get(module, module)}.{tensor}" for name, module, _, tensor in split}


_BOTTLENECK = {
    **{"conv1": "body.0", "bn1": "body.1", "conv2": "body.3", "bn2": "body.4", "conv3": "body.6"},
    **{"bn3": "body.7", "downsample.0": "shortcut.0", "downsample.1": "shortcut.1"},
}


def _bottleneck(parts: Sequence[str]) -> dict[str, str]:
    return {part: _BOTTLENECK.get(part, part) for part in parts}


def _inverted_residual(parts: Sequence[str]) -> dict[str, str]:
    """A convolution with its batch norm, or squeeze-and-excite, is one entry of `block`, in their order."""
    if "conv" in parts:  # the widening after the last block
        return {"conv": "0", "bn1": "1"}
    places, number = {}, -1
    for part in parts:
        if part.startswith("bn"):
            places[part] = f"block.{number}.1"
        elif part == "se.conv_expand":
            places[part] = f"block.{number}.fc2"
        else:
            number += 1
            places[part] = f"block.{number}.{'fc1' if part == 'se.conv_reduce' else '0'}"
    return places


_PUBLISHED = _Form({"conv1": "features.0.0", "bn1": "features.0.1", "fc": "classifier.0"}, _bottleneck)
_MOBILENETV3 = _Form(
    {
        **{"conv_stem": "features.0.0", "bn1": "features.0.1"},
        **{"conv_head": "classifier.0", "classifier": "classifier.3"},
    },
    _inverted_residual,
    eps=1e-3,
)


def check_form(form: str, model: str, depths: Depths) -> None:
    """Whether another program has a network in its form.

    Args:
        form: `published`, `torchvision` or `timm`.
        model: the network's name, as `create_model` takes it.
        depths: blocks kept per stage.

    Raises:
        ConfigError: it has not.
    """
    allowed = {
        "published": "resnet50, resnet101 and resnet152 with the blocks per stage of one of them",
        "torchvision": ", ".join((*TORCHVISION_RESNETS, *TORCHVISION_MOBILENETS)),
        "timm": "timm's own networks; safetensors and onnx take all",
    }
    exists = {
        "published": model in ("resnet50", "resnet101", "resnet152") and depths in PUBLISHED_DEPTHS,
        "torchvision": model in TORCHVISION_RESNETS or model in TORCHVISION_MOBILENETS,
        "timm": not any(model in own for own in (CIFAR_RESNETS, CIFAR_BOTTLENECKS, CIFAR_MOBILENETS)),
    }
    if not exists[form]:
        raise ConfigError(
            f"--format is {form} for {model} with {depths} blocks per stage; allowed: {allowed[form]}"
        )


def to_form(network: StagedNetwork, form: str) -> dict[str, Tensor]:
    """A network's weights under the names of a form, which `check_form` allows; the published code's as its
    DataParallel saves them.
    """
    state = network.state_dict()
    if form == "published":
        return {f"module.{theirs}": state[ours] for ours, theirs in _PUBLISHED.names(state).items()}
    if form == "torchvision" and "conv_head.weight" in state:
        state = _with_eps(network, state, _MOBILENETV3.eps, to_theirs=True)
        state["conv_head.weight"] = state["conv_head.weight"].flatten(1)
        return {theirs: state[ours] for ours, theirs in _MOBILENETV3.names(state).items()}
    return state


def to_ours(network: StagedNetwork, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of any form, under the names of a network. What has no place there keeps its name.

    Args:
        network: of the same architecture.
        state: in our names, torchvision's or the published code's, behind a prefix or not (`module.` of
            DataParallel, DDP and AveragedModel, `_orig_mod.` of torch.compile, `model.` of Lightning); may
            lack the counters `num_batches_tracked`, as files of old do.
    """
    wanted = network.state_dict()
    state = _without_prefix(state, wanted)
    form = _form_of(state)
    if form is not None:
        back = {theirs: ours for ours, theirs in form.names(wanted).items()}
        state = {back.get(name, name): value for name, value in state.items()}
        state = _with_eps(network, state, form.eps, to_theirs=False)
        head = "conv_head.weight"
        if head in state and state[head].ndim == 2:
            state[head] = state[head][:, :, None, None]
    counters = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    return {name: torch.zeros_like(value, device="cpu") for name, value in counters.items()} | dict(state)


def _form_of(state: Mapping[str, Any]) -> _Form | None:
    """The form of a state dict; None: ours."""
    if "features.1.body.0.weight" in state:
        return _PUBLISHED
    return _MOBILENETV3 if "features.1.block.0.0.weight" in state else None


def _without_prefix(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state without the words that all of its names begin with, unless they are the network's own."""
    while not wanted.keys() & state.keys():
        firsts = {name.partition(".")[0] if "." in name else "" for name in state}
        if len(firsts) != 1 or firsts == {""}:
            break
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return state


def _with_eps(
    network: nn.Module, state: Mapping[str, Any], eps: float | None, *, to_theirs: bool
) -> dict[str, Any]:
    """Batch norms' factors such that they compute the same with another eps, in evaluation mode."""
    result = dict(state)
    if eps is None:
        return result
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)}
    for name, layer in layers.items():
        weight, variance = (result.get(f"{name}.{tensor}") for tensor in ("weight", "running_var"))
        if isinstance(weight, Tensor) and isinstance(variance, Tensor):
            own, other = (layer.eps, eps) if to_theirs else (eps, layer.eps)
            factor = ((variance.double() + other) / (variance.double() + own)).sqrt()
            result[f"{name}.weight"] = (weight * factor).to(weight)
    return result
