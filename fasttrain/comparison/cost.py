"""What a recipe's training step costs: seconds and peak memory, on images that are at hand."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from .. import build
from ..config import Config
from ..distributed import Process
from ..hardware import choose_device, choose_precision, configure_backends
from ..randomness import draw_sizes
from ..telemetry.measure import peak_bytes, seconds, storage_bytes

DRAWS = 24
"""Consecutive draws of subnets, images and drops whose steps are timed."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a training step: mean seconds over `DRAWS`, and peak bytes of the largest of them.

    On a GPU all that its allocator holds counts as memory; on a CPU weights, momentum, images and what the
    step allocates through PyTorch's allocator.
    """

    seconds: float
    bytes: int


def measure_costs(configs: Mapping[str, Config], classes: int) -> dict[str, Cost]:
    """Cost of a step of each run; their steps take turns, so that a busy machine slows all of them.

    Args:
        configs: by name.
        classes: of the training images.
    """
    steps = {name: _Step(config, classes) for name, config in configs.items()}
    for step in steps.values():
        step.warm_up()
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for draw in range(DRAWS):
        for name in order:
            times[name].append(steps[name].seconds(draw))
        order.append(order.pop(0))  # none always follows the same one
    return {name: Cost(fmean(times[name]), step.peak_bytes()) for name, step in steps.items()}


class _Step:
    """A run's training step on random images; its learning rate is 0, so that nothing can diverge."""

    def __init__(self, config: Config, classes: int) -> None:
        self.config, self.device = config, choose_device(config.run.device)
        configure_backends(config.run, self.device)
        precision = choose_precision(config.run.precision, self.device)
        self.network = build.build_network(config, classes, self.device).train()
        self.step = build.build_step(config, self.network, Process(0, 1, self.device), precision, 1)
        self.step.schedule = lambda _: 0.0  # type: ignore[assignment]
        batch, crop = config.run.batch, config.data.crop
        self.images = self._images(batch, crop, precision.image_dtype)
        self.targets = torch.arange(batch, device=self.device) % self.network.num_classes

    def _images(self, count: int, side: int, dtype: torch.dtype) -> Tensor:
        shape, layout = (count, 3, side, side), torch.contiguous_format
        if self.config.run.channels_last:
            layout = torch.channels_last
        return torch.randn(shape, device=self.device, dtype=dtype).contiguous(memory_format=layout)

    def _small(self, draw: int) -> list[Tensor]:
        """The downscaled batches of a draw, of the sides that the loader would draw."""
        method, count = self.config.method, len(self.images)
        if method.name != "stimulative" or method.subnet_inputs != "downscaled":
            return []
        at = {"seed": self.config.run.seed, "epoch": method.start_epoch, "step": draw}
        sides = draw_sizes(method.sizes, method.sizes_per_step, **at)
        return [self._images(count, side, self.images.dtype) for side in sides]

    def train(self, draw: int, small: Sequence[Tensor] | None = None) -> None:
        """One step."""
        small = self._small(draw) if small is None else small
        epoch = self.config.method.start_epoch
        self.step(self.images, small, self.targets, epoch=epoch, step=draw, global_step=draw)

    def warm_up(self) -> None:
        """A step on images of each side: makes the momentum, and a GPU tunes its convolutions for them."""
        sides = {tuple(each.shape[-1] for each in self._small(draw)): draw for draw in range(DRAWS)}
        for draw in sides.values():
            self.train(draw)

    def seconds(self, draw: int) -> float:
        """Of one step, its images at hand."""
        small = self._small(draw)
        return seconds(self.device, lambda: self.train(draw, small))

    def peak_bytes(self) -> int:
        """Of the largest draw, what other runs hold on the device left out."""
        draw = max(range(DRAWS), key=self._size)
        small = self._small(draw)
        own = [*self._state(), self.images, *small, self.targets]
        gc.collect()
        peak, before = peak_bytes(self.device, lambda: self.train(draw, small), own)
        return peak - before + storage_bytes(own)

    def _size(self, draw: int) -> int:
        """Pixels times blocks of what a draw runs, the largest pass of it where these follow each other."""
        epoch = self.config.method.start_epoch
        plan = self.step.method.plan(self.images, self._small(draw), epoch=epoch, step=draw)
        sizes = [each.images * each.side**2 * len(each.tree) for each in plan.passes]
        return max(sizes) if self.config.method.backward == "split" else sum(sizes)

    def _state(self) -> list[Tensor]:
        """Weights, buffers, their average and what the optimizer keeps."""
        kept = [
            value
            for entry in self.step.optimizer.state.values()
            for value in entry.values()
            if isinstance(value, Tensor)
        ]
        ema = self.step.ema
        averages = [] if ema is None else [*ema.parameters(), *ema.buffers()]
        return [*self.step.forward.parameters(), *self.network.buffers(), *averages, *kept]
