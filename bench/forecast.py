"""The model behind `python -m bench plan`: a recipe's step on n GPUs, from one GPU's and the all-reduce."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fasttrain.config import Config
from fasttrain.errors import ConfigError

from .costs import parameters
from .links import Cluster, Link, all_reduce, exposed
from .published import GPUS
from .rates import Rate

GPUS_PER_NODE = 8
SCALE = tuple(2**power for power in range(11))
"""Numbers of GPUs in the scaling table."""

BACKWARD_SHARE = 2 / 3
"""Of a plain step: a backward pass is two products per layer where the forward is one."""
BLOCK_SECONDS = 350e-6
"""Host seconds to launch one residual block's forward and backward, the least that its call takes: three
fused batch norms at 87 us (bench/NOTES.md), three convolutions at about 30 us. Assumed, not measured."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What is in no row.

    Attributes:
        block_seconds: see `BLOCK_SECONDS`.
        data_wait: share of a step spent waiting for images.
        utilisation: share of the board's power limit that is drawn, where watts were not measured.
        gradient_bytes: per parameter on the wire: 4, or 2 with bf16 compression.
        nvlink: one GPU's link within a node; None: as published.
        network: one GPU's link between nodes; None: as published.
    """

    block_seconds: float = BLOCK_SECONDS
    data_wait: float = 0.01
    utilisation: float = 0.9
    gradient_bytes: int = 4
    nvlink: Link | None = None
    network: Link | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """So many GPUs, equally many on each node, with so many images each per step."""

    gpus: int
    nodes: int
    batch: int


def shape_of(gpus: int, batch: int, nodes: int = 0) -> Shape:
    """A shape of `batch` images per GPU; 0 nodes: as few as hold eight GPUs each.

    Raises:
        ConfigError: GPUs that the nodes cannot share equally.
    """
    nodes = nodes or math.ceil(gpus / GPUS_PER_NODE)
    if gpus % nodes:
        raise ConfigError(f"--gpus is {gpus}; allowed: a multiple of the {nodes} nodes")
    return Shape(gpus, nodes, batch)


@dataclass(frozen=True, slots=True)
class Forecast:
    """A recipe on some GPUs.

    Attributes:
        gpu: key of `GPUS`.
        shape: how many GPUs and images.
        rate: of one GPU.
        steps: of the whole run.
        compute: seconds per step on each GPU.
        exposed: seconds per step of the all-reduce that no backward pass hides.
        step: seconds per step, with the data wait.
        alone: seconds per step of a single GPU on as many images as each has here.
        joules: of all GPUs over the run.
    """

    gpu: str
    shape: Shape
    rate: Rate
    steps: int
    compute: float
    exposed: float
    step: float
    alone: float
    joules: float

    @property
    def images_per_second(self) -> float:
        """Of all GPUs."""
        return self.shape.gpus * self.shape.batch / self.step

    @property
    def hours(self) -> float:
        """Of all steps; evaluations are not in it."""
        return self.steps * self.step / 3600

    @property
    def efficiency(self) -> float:
        """Images per second over those of as many GPUs that need not talk to each other."""
        return self.alone / self.step

    def metrics(self) -> dict[str, tuple[float, str, str]]:
        """Name to value, unit and label."""
        own = self.rate.label
        step = own if self.shape.gpus == 1 else "estimated"  # more GPUs: the link model is in it
        energy = "estimated" if self.rate.joules is None else own
        return {
            "steps": (self.steps, "steps", "exact"),
            "compute": (1e3 * self.compute, "ms", own),
            "exposed": (1e3 * self.exposed, "ms", "estimated"),
            "step": (1e3 * self.step, "ms", step),
            "rate": (self.images_per_second, "img/s", step),
            "hours": (self.hours, "h", step),
            "efficiency": (100 * self.efficiency, "%", "estimated"),
            "energy": (self.joules / 3.6e6, "kWh", energy),
        }


def forecast(
    recipe: Config, gpu: str, rate: Rate, shape: Shape, images: int, assumptions: Assumptions
) -> Forecast:
    """A recipe on some GPUs.

    Args:
        recipe: the run; instead of its batch the shape's counts.
        gpu: key of `GPUS`.
        rate: of one such GPU.
        shape: how many.
        images: per epoch.
        assumptions: see there.

    Raises:
        ConfigError: fewer images than one step takes.
    """
    own, busy = GPUS[gpu], 1 - assumptions.data_wait
    compute = max(shape.batch * rate.seconds, rate.calls * assumptions.block_seconds)
    links = assumptions.nvlink or own.nvlink, assumptions.network or own.network
    size = parameters(recipe.model.name, recipe.data.num_classes or 1000) * assumptions.gradient_bytes
    cluster = Cluster(shape.gpus, shape.nodes, *links)
    wait = _gradients(recipe.method.backward, size, cluster, BACKWARD_SHARE * shape.batch * rate.plain)
    step = (compute + wait) / busy
    steps = recipe.run.epochs * steps_per_epoch(recipe, images, shape.batch * shape.gpus)
    if rate.joules is None:
        joules = assumptions.utilisation * own.watts * shape.gpus * steps * step
    else:
        joules = rate.joules * shape.batch * shape.gpus * steps
    return Forecast(gpu, shape, rate, steps, compute, wait, step, compute / busy, joules)


def _gradients(backward: str, size: int, cluster: Cluster, window: float) -> float:
    """Seconds per step that the all-reduce of `size` bytes adds.

    Autograd runs the subnets' backward passes first: gradients become complete in the main network's, whose
    seconds are the window. Split passes reduce after the last one, in one piece.
    """
    return all_reduce(size, cluster) if backward == "split" else exposed(size, cluster, window)


def steps_per_epoch(recipe: Config, images: int, batch: int) -> int:
    """Of a global batch; the last, partial one counts where the recipe keeps it.

    Raises:
        ConfigError: no step.
    """
    steps = images // batch if recipe.data.drop_last else math.ceil(images / batch)
    if not steps:
        raise ConfigError(f"--images is {images}; allowed: at least the global batch of {batch}")
    return steps


def scaling(
    recipe: Config, plan: Forecast, images: int, assumptions: Assumptions
) -> Iterator[tuple[int, Forecast | None, Forecast | None]]:
    """For each of `SCALE`: GPUs, the forecast with the plan's images per GPU, and with its images in all.

    None where an epoch has no step, or where the images do not divide into two or more per GPU.
    """
    total = plan.shape.batch * plan.shape.gpus

    def at(gpus: int, batch: int) -> Forecast:
        return forecast(recipe, plan.gpu, plan.rate, shape_of(gpus, batch), images, assumptions)

    for gpus in SCALE:
        weak = at(gpus, plan.shape.batch) if plan.shape.batch * gpus <= images else None
        divides = total % gpus == 0 and total // gpus >= 2  # batch norm needs two images
        yield gpus, weak, at(gpus, total // gpus) if divides else None
