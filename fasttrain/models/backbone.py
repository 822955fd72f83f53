"""Anyone's ResNet seen as stem, stages and head: the view shares its modules; the model stays as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..subnets import PrefixTree
from .resnet import ResidualStages
from .staged import StagedNetwork

VIEWABLE = (
    "a ResNet of timm or torchvision, a backbone that they made of one, or another module whose children are "
    "a stem, layer1, layer2, ... of residual blocks, and a head, run in this order"
)


def staged_view(model: nn.Module, *, headless: bool = False) -> StagedNetwork:
    """A residual network that runs the blocks of a model: shared, not copied.

    Args:
        model: a `StagedNetwork`, or `VIEWABLE`; its weights and modes are left as they are.
        headless: leave out what follows the last stage, also where the model has it.

    Raises:
        ConfigError: another model.
    """
    if isinstance(model, StagedNetwork) and not headless:
        return model
    if not isinstance(model, nn.Module):
        raise _refused(model)
    view = _View(model)
    _compare(view, model, headless)
    if headless:
        view.drop_head()
    return view


class _View(ResidualStages):
    """Modules of a model, under their own names."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        names = [name for name, _ in source.named_children()]
        layers = [index for index, name in enumerate(names) if re.fullmatch(r"layer\d+", name)]
        if not layers or not layers[0] or layers != list(range(layers[0], layers[-1] + 1)):
            raise _refused(source)
        for name, child in source.named_children():
            self.add_module(name, child)
        if not all(isinstance(stage, nn.Sequential) and len(stage) for stage in self.stages):
            raise _refused(source)
        self.stem_names, self.head_names = names[: layers[0]], names[layers[-1] + 1 :]
        self.drop_rate = float(getattr(source, "drop_rate", 0.0))

    @property
    def stem_modules(self) -> Sequence[nn.Module]:
        """The children before layer1."""
        return [getattr(self, name) for name in self.stem_names]

    @property
    def head_modules(self) -> Sequence[nn.Module]:
        """The children after the last layer; none of a backbone."""
        return [getattr(self, name) for name in self.head_names]

    def stem(self, x: Tensor) -> Tensor:
        """Images [B, channels, H, W] to the first stage's input."""
        for module in self.stem_modules:
            x = module(x)
        return x

    def head(self, x: Tensor) -> Tensor:
        """The last stage's output to logits [B, classes]."""
        *pooling, classifier = self.head_modules
        for module in pooling:
            x = module(x)
        return classifier(F.dropout(x.flatten(1), self.drop_rate, self.training))

    def drop_head(self) -> None:
        """Forget the head, whose parameters get no gradient where nothing runs it."""
        for name in self.head_names:
            delattr(self, name)
        self.head_names = []


def _refused(model: object) -> ConfigError:
    return ConfigError(
        f"the model is of {type(model).__module__}.{type(model).__name__}; allowed: {VIEWABLE}"
    )


def _compare(view: _View, model: nn.Module, headless: bool) -> None:
    """Whether a view computes what the model's own forward does: names alone may deceive.

    A model's output is its head's, or, if only the stages are asked for, its last stage's.

    Raises:
        ConfigError: it does not.
    """
    convolution = next((each for each in view.modules() if isinstance(each, nn.Conv2d)), None)
    if convolution is None:
        raise _refused(model)
    weight = convolution.weight
    channels = convolution.in_channels
    x = torch.linspace(-1, 1, channels * 64 * 64, dtype=weight.dtype, device=weight.device)
    with _evaluating(model), _evaluating(view):
        try:
            own = _last(model(x.view(1, channels, 64, 64)))
            stages = view.stage_outputs([x.view(1, channels, 64, 64)], [PrefixTree([view.full])])[0][0]
            ours = [view.head(stages[-1])] if view.head_names else []
        except (AttributeError, RuntimeError, TypeError, ValueError):
            raise _refused(model) from None
    if headless or not view.head_names:
        ours.append(stages[-1])
    if not any(_close(each, own) for each in ours):
        raise _refused(model)


def _last(output: Any) -> Any:
    """The last of a backbone's feature maps, or the one output of a network."""
    if isinstance(output, Mapping):
        return list(output.values())[-1]
    return output[-1] if isinstance(output, list | tuple) else output


def _close(ours: Tensor, own: Any) -> bool:
    """Whether two outputs are equal but for rounding."""
    same = isinstance(own, Tensor) and own.shape == ours.shape
    return same and torch.allclose(ours, own, rtol=1e-3, atol=1e-5, equal_nan=True)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's mode as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
