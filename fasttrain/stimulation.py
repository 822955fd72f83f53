"""ST in a training loop of one's own: the subnets of a ResNet, run together with it in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config, Data, Method
from .effects import ignored
from .errors import ConfigError, instead
from .kernels.normalized_loss import StimulativeLoss
from .kernels.runtime import Kernels
from .methods import Plan, Stimulative
from .models import frozen_statistics, staged_view
from .randomness import draw_sizes
from .subnets import PrefixTree

_THE_LOOPS = (
    *("name", "subnet_inputs", "subnet_share", "kl_schedule", "start_epoch", "backward"),
    *("cascade", "main_resizes"),  # of inputs that are normalized again
    *("drop", "drop_ratio", "mask_square", "auxiliary_weight", "survival"),  # other methods'
    *("distillation", "distillation_temperature"),
)
"""Fields of `Method` that a loop of one's own decides by itself, or that ST has no use for."""

OPTIONS = tuple(field.name for field in fields(Method) if field.name not in _THE_LOOPS)
"""Options of `stimulate`: fields of `fasttrain.config.Method`, which says what they mean."""

Output = Any
"""Logits [B, C], or a tuple of the stages' outputs [B, C, h, w], first to last."""


class Outputs(NamedTuple):
    """What one pass gives.

    Attributes:
        main: the main network's output: logits [B, C], or each stage's output [B, C, h, w].
        subnets: each drawn subnet's, in the same form; what it shares with others is the same tensor, so that
            nothing may be changed in place.
        weights: each subnet's weight in the loss.
    """

    main: Output
    subnets: list[Output]
    weights: tuple[float, ...]


def stimulate(
    model: nn.Module,
    *,
    outputs: Literal["logits", "features"] = "logits",
    seed: int = 0,
    kernels: Kernels = "triton",
    **options: Any,
) -> Stimulated:
    """A module that runs a ResNet together with random subnets of itself.

    The model stays what it is: the new module shares its weights and keeps none of its own, so that
    optimizer, checkpoints, evaluation and export go on using the model.

    Args:
        model: a ResNet of timm or torchvision, a backbone that they made of one, or a `StagedNetwork`.
        outputs: `logits` of a classifier; `features`: each stage's output, for a head of one's own.
        seed: of the draws, which depend on it and the step alone: they are equal in all processes.
        kernels: of `Stimulated.loss`; `triton` runs where Triton does, plain PyTorch elsewhere.
        **options: of `fasttrain.config.Method`, with its defaults: subnets, space, sampling, draws, sizes,
            sizes_per_step; for the loss main_weight, kl_weight, supervision, normalize and so on. With
            sizes the subnets see smaller images (ST++), whose shorter side is drawn from them.

    Raises:
        ConfigError: a model without stages of residual blocks, an unknown option, or a value out of range.
    """
    if outputs not in ("logits", "features"):
        raise ConfigError(f"outputs is {outputs!r}; allowed: logits, features")
    if kernels not in ("triton", "reference"):
        raise ConfigError(f"kernels is {kernels!r}; allowed: triton, reference")
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ConfigError(f"seed is {seed!r}; allowed: 0 to {2**31 - 1}")
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise ConfigError(f"stimulate has no option {unknown[0]!r}; {instead(unknown[0], OPTIONS)}")
    sizes = options.get("sizes", ())
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise ConfigError(f"sizes is {sizes!r}; allowed: a list of sides, pixels")
    options["sizes"] = tuple(sizes)
    method = Method(subnet_inputs="downscaled" if options["sizes"] else "full", **options)
    for each in ignored(Config(data=Data(crop=4096), method=method)):  # sides are the caller's
        raise ConfigError(str(each).replace("method.", ""))
    return Stimulated(model, method, outputs == "features", seed, kernels)


class Stimulated(nn.Module):
    """What `stimulate` returns. Under DDP it is one forward: wrap it, or a module that calls it once a step.

    Attributes:
        network: runs the model's own blocks.
    """

    def __init__(
        self, model: nn.Module, options: Method, features: bool, seed: int, kernels: Kernels
    ) -> None:
        """See `stimulate`."""
        super().__init__()
        self.network = staged_view(model, headless=features)
        if not features and not self.network.head_modules:
            raise ConfigError(
                "outputs is 'logits', and the model ends with its last stage; allowed: outputs='features'"
            )
        self.options, self.features, self.seed = options, features, seed
        self.method = Stimulative(
            options,
            self.network.full,
            self.network.depths,
            seed=seed,
            epochs=1,
            mean=(),
            std=(),
            kernels=kernels,
            without_shortcut=self.network.without_shortcut,
        )

    def forward(self, images: Tensor, step: int) -> Outputs:
        """Run the model and a step's subnets in one pass; in evaluation mode the model alone.

        Shared blocks run once. Batch norm's running statistics follow the main network alone.

        Args:
            images: [B, channels, H, W].
            step: of the whole training, counted from 0; the draw is a function of (seed, step).
        """
        plan = self._plan(images, step)
        run = self.network.stage_outputs if self.features else self.network.forward_trees
        results: Sequence[Sequence[Output]] = run(plan.inputs, plan.trees)
        subnets = [results[tree][position] for tree, position in plan.places]
        return Outputs(results[0][0], subnets, plan.weights)

    def _plan(self, images: Tensor, step: int) -> Plan:
        if not self.training:
            return Plan((images,), (PrefixTree([self.network.full]),))
        options = self.options
        count = options.sizes_per_step if options.sizes else 0
        sides = draw_sizes(options.sizes, count, seed=self.seed, epoch=0, step=step)
        return self.method.plan(images, [_downscaled(images, side) for side in sides], epoch=0, step=step)

    def loss(self, outputs: Outputs, targets: Tensor) -> StimulativeLoss:
        """The papers' loss of a classifier: cross-entropy of the main network, and each subnet's loss.

        Args:
            outputs: with logits.
            targets: class indices, int64 [B], or probabilities [B, C].

        Returns:
            `total` to go backward from; `main`, `subnets` [K] and `hits` are detached.

        Raises:
            ConfigError: the outputs are features.
        """
        if self.features:
            raise ConfigError("loss is of logits, and outputs is 'features'; allowed: task_loss")
        places = tuple((0, position) for position in range(1, 1 + len(outputs.subnets)))
        plan = Plan((), (), places, outputs.weights)
        return self.method.loss([[outputs.main, *outputs.subnets]], plan, targets)

    def task_loss(self, outputs: Outputs, compute: Callable[[Output], Tensor], *heads: nn.Module) -> Tensor:
        """Any loss of the main network, and the same of each subnet: the ground truth teaches them (R50-ST*).

        Args:
            outputs: of this step.
            compute: the loss of one output, a scalar; it runs the head, where there is one.
            *heads: modules that it runs; their batch norms' running statistics follow the main network alone.

        Returns:
            main_weight times the main network's, and the weighted sum of the subnets'.
        """
        total = self.options.main_weight * compute(outputs.main)
        with frozen_statistics(*heads):
            for weight, output in zip(outputs.weights, outputs.subnets, strict=True):
                total = total + weight * compute(output)
        return total


def _downscaled(images: Tensor, side: int) -> Tensor:
    """Images [B, C, H, W] with a shorter side of `side` pixels, antialiased.

    Raises:
        ConfigError: theirs is shorter.
    """
    height, width = images.shape[-2:]
    if side > min(height, width):
        raise ConfigError(
            f"sizes has {side} for images of {height} by {width} pixels; allowed: up to their shorter side"
        )
    scale = side / min(height, width)
    size = (round(height * scale), round(width * scale))
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
