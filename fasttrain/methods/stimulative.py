"""Stimulative training: ST (Ye et al., NeurIPS 2022) and ST++ (2023)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from torch import Tensor

from .. import config
from ..kernels.normalized_loss import StimulativeLoss, stimulative_loss
from ..kernels.runtime import Kernels
from ..randomness import draw_sizes
from ..subnets import BlockRef, Draw, PrefixTree, Subnet, draw_subnets, sampling_space
from .inputs import cascade, deal, draw_main_sizes, draw_windows
from .method import Plan


def images_seen(share: float, images: int) -> int:
    """How many of a batch's images the subnets see: a share of them (`subnet_share`), at least one."""
    return max(1, round(share * images))


class Stimulative:
    """Cross-entropy on the main network, and K sampled subnets that follow its output.

    A draw says which subnets; `assemble` turns it into one forward pass, or one per input size with
    `backward` split; `loss` weighs the outputs.
    """

    def __init__(
        self,
        options: config.Method,
        full: Subnet,
        depths: Sequence[int],
        *,
        seed: int,
        epochs: int,
        mean: Sequence[float],
        std: Sequence[float],
        kernels: Kernels = "reference",
        without_shortcut: frozenset[BlockRef] = frozenset(),
    ) -> None:
        """Set up for one network and run.

        Args:
            options: the method's configuration.
            full: the main network as a subnet of itself.
            depths: its blocks per stage.
            seed: of the draws.
            epochs: of the run, for the weight schedule.
            mean: of the images' normalization, which cascaded inputs repeat.
            std: likewise.
            kernels: implementation of the loss.
            without_shortcut: the network's blocks without a shortcut.

        Raises:
            ConfigError: a sampling space that does not fit the network.
        """
        self.options, self.full, self.seed, self.epochs = options, full, seed, epochs
        self.mean, self.std, self.kernels = mean, std, kernels
        self.space = sampling_space(options.sampling, options.space, depths, without_shortcut)

    def plan(self, images: Tensor, small: Sequence[Tensor], *, epoch: int, step: int, part: int = 0) -> Plan:
        """Draw the step's subnets and plan their pass with the main network."""
        draw = self.draw(epoch, step)
        if self.options.cascade == "crop" and draw.sizes:
            sides = [*(draw.main_sizes or images.shape[-1:])[-1:], *draw.sizes[:-1]]
            crops = draw_windows(sides, seed=self.seed, epoch=epoch, step=step)
            draw = dataclasses.replace(draw, windows=crops)
        return self.assemble(images, small, draw, epoch=epoch)

    def draw(self, epoch: int, step: int) -> Draw:
        """The subnets of one step: a function of (seed, epoch, step) alone; none before `start_epoch`."""
        options = self.options
        at = {"seed": self.seed, "epoch": epoch, "step": step}
        main_sizes = draw_main_sizes(options.main_resizes, **at)
        if epoch < options.start_epoch:
            return Draw(main_sizes=main_sizes)
        draw = draw_subnets(
            self.space,
            options.subnets,
            coupled=options.draws == "coupled",
            **at,
        )
        cascaded = options.subnet_inputs == "cascaded"
        sizes = draw_sizes(options.sizes, options.subnets, **at) if cascaded else ()
        return dataclasses.replace(draw, sizes=sizes, main_sizes=main_sizes)

    def assemble(self, images: Tensor, small: Sequence[Tensor], draw: Draw, *, epoch: int) -> Plan:
        """The forward pass of a given draw."""
        weight = self.subnet_weight(epoch)
        weights = tuple(weight * own for own in draw.weights)
        if draw.main_sizes:
            images = cascade(images, draw.main_sizes, self.mean, self.std)[-1]
        groups = self._groups(images, small, draw)
        trees = [PrefixTree([self.full, *(draw.subnets[i] for i in groups[0][1])])]
        trees += [PrefixTree([draw.subnets[i] for i in members]) for _, members in groups[1:]]
        places = {}
        for group, (_, members) in enumerate(groups):
            for position, subnet in enumerate(members, start=1 if group == 0 else 0):
                places[subnet] = (group, position)
        inputs = tuple(batch for batch, _ in groups)
        return Plan(inputs, tuple(trees), tuple(places[i] for i in range(len(places))), weights)

    def _groups(self, images: Tensor, small: Sequence[Tensor], draw: Draw) -> list[tuple[Tensor, list[int]]]:
        everyone = list(range(len(draw.subnets)))
        if not everyone:
            return [(images, [])]
        seen = images_seen(self.options.subnet_share, len(images))
        if self.options.subnet_inputs == "full":
            together = self.options.backward == "joint" and seen == len(images)
            return [(images, everyone)] if together else [(images, []), (images[:seen], everyone)]
        if self.options.subnet_inputs == "downscaled":
            return [(images, []), *deal(len(everyone), [batch[:seen] for batch in small])]
        inputs = cascade(
            images[:seen],
            draw.sizes,
            self.mean,
            self.std,
            kind=self.options.cascade,
            crops=draw.windows,
        )
        return [(images, []), *((batch, [i]) for i, batch in enumerate(inputs))]

    def subnet_weight(self, epoch: int) -> float:
        """Weight of a subnet's loss in an epoch (the published code's --kl_coef, --kl_cos, --kl_rcos)."""
        options = self.options
        rise = 0.5 * (1 - math.cos(math.pi * epoch / self.epochs))
        factor = {"constant": 1.0, "cosine_up": rise, "cosine_down": 1 - rise}[options.kl_schedule]
        return options.kl_weight * factor

    def loss(self, logits: Sequence[Sequence[Tensor]], plan: Plan, targets: Tensor) -> StimulativeLoss:
        """Main cross-entropy and each subnet's loss (ST equation 5; ST++ equations 4 to 6).

        Subnets that saw a part of the batch follow the main network's logits of that part; each loss is the
        mean over the images that it has.
        """
        main_weight = self.options.main_weight if plan.trains_main else 0.0
        main = logits[0][0]
        subnets = [logits[tree][position] for tree, position in plan.places]
        seen = len(subnets[0]) if subnets else len(main)
        if seen == len(main):
            return self._loss(main, subnets, targets, plan.weights, main_weight)
        own = self._loss(main, [], targets, (), main_weight)
        theirs = self._loss(main[:seen].detach(), subnets, targets[:seen], plan.weights, 0.0)
        return own._replace(total=own.total + theirs.total, subnets=theirs.subnets)

    def _loss(
        self,
        main: Tensor,
        subnets: Sequence[Tensor],
        targets: Tensor,
        weights: Sequence[float],
        main_weight: float,
    ) -> StimulativeLoss:
        options = self.options
        return stimulative_loss(
            main,
            subnets,
            targets,
            weights=weights,
            supervision=options.supervision,
            normalize=options.normalize,
            normalize_main=options.normalize_main,
            amplitude=options.amplitude,
            temperature=options.temperature,
            main_weight=main_weight,
            label_smoothing=options.label_smoothing,
            ensemble=options.ensemble,
            scale_by_teacher=options.scale_by_teacher,
            main_loss=options.main_loss,
            target_threshold=options.target_threshold,
            kernels=self.kernels,
        )
