"""The model of `bench plan` beside what was recorded: how far it may be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fasttrain import recipes

from . import published
from .costs import step_cost
from .forecast import Assumptions, forecast, shape_of
from .modes import MODES, Setup, default_sizes
from .rates import StepFile, find_rate, work_of

IMAGENET_IMAGES = 1_281_167


@dataclass(frozen=True, slots=True)
class Check:
    """One figure by the model, and as recorded."""

    what: str
    model: float
    recorded: float
    unit: str
    source: str

    @property
    def error(self) -> float:
        """Relative: above 0 where the model says more."""
        return self.model / self.recorded - 1


def checks(files: Sequence[StepFile], assumptions: Assumptions) -> Iterator[Check]:
    """The published code's run, the published scaling of plain training, and every measured ratio."""
    yield from published_run(files, assumptions)
    yield from published_scaling(assumptions)
    for file in files:
        yield from measured_ratios(file)


def published_run(files: Sequence[StepFile], assumptions: Assumptions) -> Iterator[Check]:
    """The ST++ paper's code on its own two A100s."""
    recipe = recipes.recipe("rn50-stpp-a1-published")
    shape = shape_of(published.STPP_GPUS, recipe.run.batch // published.STPP_GPUS)
    rate = find_rate(work_of(recipe), "a100", files)
    own = forecast(recipe, "a100", rate, shape, IMAGENET_IMAGES, assumptions)
    what, source = f"{recipe.recipe} on {shape.gpus} A100", "the published code's train.log"
    yield Check(what, own.images_per_second, published.STPP_RATE, "img/s", source)
    yield Check(f"{what}, with its evaluations", own.hours, published.STPP_HOURS, "h", source)


def published_scaling(assumptions: Assumptions) -> Iterator[Check]:
    """Plain training on a DGX A100, whose rate on one GPU is given: the link model alone."""
    base = recipes.recipe("rn50-ct-200")
    base = replace(base, data=replace(base.data, crop=published.PLAIN_CROP))
    for precision, recorded in published.PLAIN_A100_EIGHT.items():
        recipe = replace(base, run=replace(base.run, precision="fp32" if precision == "tf32" else "auto"))
        rate = find_rate(work_of(recipe), "a100", ())
        eight = forecast(recipe, "a100", rate, shape_of(8, 256), IMAGENET_IMAGES, assumptions)
        what = f"plain ResNet-50, {precision}, on 8 A100, its loader included"
        yield Check(what, eight.images_per_second, recorded, "img/s", published.PLAIN_SOURCE)


def measured_ratios(file: StepFile) -> Iterator[Check]:
    """Seconds over common training's, by FLOPs of the same draws and as measured."""
    for (mode, model, subnets, space), found in file.modes.items():
        plain = file.modes.get(("ct", model, 0, ""))
        if mode not in MODES or mode in ("ct", "timm") or plain is None:
            continue  # a variant changes what a FLOP costs
        setup = Setup(subnets, space, found.crop, default_sizes(found.crop), seed=0)
        cost, base = (step_cost(model, MODES[name](setup), found.crop) for name in (mode, "ct"))
        what = f"{model} {mode}, K = {subnets}, {space}, over ct"
        yield Check(
            what,
            cost.flops / base.flops,
            found.seconds / plain.seconds,
            "plain steps",
            f"rows of {file.device}",
        )
