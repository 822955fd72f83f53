"""Training with classifiers inside of the network: layer and stage supervision, self-distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from .. import config
from ..kernels.normalized_loss import StimulativeLoss, stimulative_loss
from ..kernels.runtime import Kernels
from ..subnets import PrefixTree, Subnet
from .method import Plan

Supervisor = Literal["kl", "ce_target"]

AUXILIARY = {
    "layer_supervision": "layers",
    "stage_supervision": "stages",
    "self_distillation": "stages",
}
"""Methods that train auxiliary classifiers, and which (`models.auxiliary.build_classifiers`)."""


class Supervision:
    """Layer or stage supervision: cross-entropy of the main network and of classifiers inside of it.

    Deeply-supervised nets (Lee et al. 2015) as baselines of the ST paper's comparison, a classifier after
    each block or each stage:

        L = CE(z, y) + w * sum_i CE(z_i, y).

    The classifiers (`models.auxiliary.classifier`) and w = 1 for each (`auxiliary_weight`) are this project's
    choice.
    """

    def __init__(
        self, options: config.Method, full: Subnet, classifiers: int, *, kernels: Kernels = "reference"
    ) -> None:
        """Set up for one network.

        Args:
            options: the method's configuration.
            full: the main network as a subnet of itself.
            classifiers: how many are trained besides its own.
            kernels: implementation of the loss.
        """
        self.options, self.kernels = options, kernels
        self.tree, self.count = PrefixTree([full]), classifiers

    def plan(self, images: Tensor, small: Sequence[Tensor], *, epoch: int, step: int, part: int = 0) -> Plan:
        """The main network on the full-size batch; its logits come first, the classifiers' after them."""
        places = tuple((0, index + 1) for index in range(self.count))
        return Plan((images,), (self.tree,), places, (self.options.auxiliary_weight,) * self.count)

    def loss(self, logits: Sequence[Sequence[Tensor]], plan: Plan, targets: Tensor) -> StimulativeLoss:
        """The cross-entropies, as a stimulative loss whose subnets are the classifiers."""
        return self._loss(logits[0], targets, plan.weights, "ce_target", self.options.main_weight)

    def _loss(
        self,
        logits: Sequence[Tensor],
        targets: Tensor,
        weights: Sequence[float],
        supervision: Supervisor,
        main: float,
    ) -> StimulativeLoss:
        first, *others = logits
        return stimulative_loss(
            first,
            others,
            targets,
            weights=weights,
            supervision=supervision,
            normalize="none",
            temperature=self.options.distillation_temperature,
            main_weight=main,
            label_smoothing=self.options.label_smoothing,
            kernels=self.kernels,
        )


class SelfDistillation(Supervision):
    """Self-distillation (Zhang et al. 2019, "Be your own teacher"): the deepest classifier teaches the rest.

    With classifiers z_i after each stage but the last, the network's own z, and a = `distillation`:

        L = CE(z, y) + w * sum_i ((1 - a) CE(z_i, y) + a T^2 KL(softmax(z / T) || softmax(z_i / T))).

    z gets no gradient from the KL, as in the authors' code, whose a and T are 0.1 and 3. Their code also
    weighs CE(z, y) by 1 - a, the paper does not. This project's choice: no third loss (L2 between features,
    weighted 1e-6 there), and classifiers with one bottleneck at the stage's own resolution.
    """

    def loss(self, logits: Sequence[Sequence[Tensor]], plan: Plan, targets: Tensor) -> StimulativeLoss:
        """Cross-entropies and KL; what it tells of each classifier is (1 - a) CE + a T^2 KL."""
        share = self.options.distillation
        hard = [(1 - share) * weight for weight in plan.weights]
        soft = [share * weight for weight in plan.weights]
        target = self._loss(logits[0], targets, hard, "ce_target", self.options.main_weight)
        teacher = self._loss(logits[0], targets, soft, "kl", 0.0)
        mixed = (1 - share) * target.subnets + share * teacher.subnets
        return target._replace(total=target.total + teacher.total, subnets=mixed)
