"""How long a recipe's step takes per image on a GPU: by rows of `bench step`, or estimated, and from what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fasttrain import config
from fasttrain.config import Config
from fasttrain.errors import ConfigError
from fasttrain.models.resnet import ResidualStages

from .costs import Cost, meta_network, plain_cost, step_cost
from .published import GPUS, PLAIN_CROP, PLAIN_MODEL, PLAIN_SOURCE, plain_rate
from .rows import read


@dataclass(frozen=True, slots=True)
class Work:
    """What a recipe computes.

    Attributes:
        model: network.
        classes: outputs of its classifier.
        crop: side of the full-size batch, pixels.
        method: the training method.
        fp32: in float32 (TF32 on a GPU), not with AMP.
    """

    model: str
    classes: int
    crop: int
    method: config.Method
    fp32: bool

    @property
    def mode(self) -> str:
        """The mode of `bench step` that measures it; a name that no file holds where there is none."""
        name = _mode(self.method, self.fp32)
        return f"{name}:published" if self.fp32 and name != "naive" else name

    @property
    def plain(self) -> Cost:
        """Of common training at this crop."""
        return plain_cost(self.model, self.crop, self.classes)

    @property
    def cost(self) -> Cost:
        """Of the method's step, the mean of as many draws as the rows hold."""
        return step_cost(self.model, self.method, self.crop, classes=self.classes)


def work_of(recipe: Config) -> Work:
    """What a recipe computes; ImageNet's 1000 classes unless it says otherwise."""
    classes, fp32 = recipe.data.num_classes or 1000, recipe.run.precision == "fp32"
    return Work(recipe.model.name, classes, recipe.data.crop, recipe.method, fp32)


def _mode(method: config.Method, fp32: bool) -> str:
    if method.name == "common":
        return "ct"
    if method.name == "augsub":
        return {"masking": "augsub-mask"}.get(method.drop, f"augsub-{method.drop}")
    split = "-split" if method.backward == "split" else ""
    if method.subnet_inputs == "full":
        return ("st" if method.subnets == 1 else "st-k") + split
    if method.subnet_inputs == "cascaded":
        return "naive" if fp32 else "stpp-cascaded"
    sizes = "k" if method.sizes_per_step == method.subnets else str(method.sizes_per_step)
    kind = "coupled" if method.draws == "coupled" else f"r{sizes}"
    if method.subnet_share != 1:
        kind = "half" if (kind, method.subnet_share) == ("r1", 0.5) else f"{kind}-share"
    return f"stpp{split}" if split and kind == "r1" else f"stpp-{kind}{split}"


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over a mode's rows.

    Attributes:
        seconds: per image.
        joules: per image; None where not measured.
        crop: side of the full-size batch, pixels.
        batch: images per step.
    """

    seconds: float
    joules: float | None
    crop: int
    batch: int


@dataclass(frozen=True, slots=True)
class StepFile:
    """One file of `bench step`.

    Attributes:
        device: its name.
        modes: by mode, model, K and sampling space.
    """

    device: str
    modes: dict[tuple[str, str, int, str], Measured]

    @property
    def gpu(self) -> str:
        """Key of `GPUS`; empty for another device."""
        return next((name for name in GPUS if name in self.device.lower()), "")

    def find(self, mode: str, work: Work) -> Measured | None:
        """A mode's rows, if there are some of this network and these subnets."""
        common = mode.partition(":")[0] in ("ct", "timm", "augsub-mask", "augsub-path")
        subnets = (0, "") if common else (work.method.subnets, work.method.space)
        return self.modes.get((mode, work.model, *subnets))

    def distance(self, work: Work) -> int:
        """Pixels between the work's crop and that of the file's plain step; many if it has none."""
        found = self.find("ct", work)
        return abs(found.crop - work.crop) if found else 10_000

    def seconds(self, mode: str, work: Work) -> float | None:
        """Per image at the work's crop, scaled by a plain step's FLOPs where another was measured."""
        found = self.find(mode, work)
        if found is None:
            return None
        return found.seconds * work.plain.flops / plain_cost(work.model, found.crop, work.classes).flops

    def ratio(self, mode: str, work: Work) -> float | None:
        """A mode's seconds over common training's."""
        own, plain = self.seconds(mode, work), self.seconds("ct", work)
        return own / plain if own and plain else None


def read_files(results: Path) -> list[StepFile]:
    """Every device's step.csv, and what stands beside it for other crops and networks."""
    if not results.is_dir():
        raise ConfigError(f"--results is {str(results)!r}; allowed: a folder of <device>/step.csv")
    return [_read_file(path) for path in sorted(results.glob("*/step*.csv"))]


def _read_file(path: Path) -> StepFile:
    values: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    device = ""
    for row in read(path):
        key = (row["mode"], row["model"], row["subnets"], row["space"], row["crop"], row["batch"])
        values[key][row["metric"]].append(float(row["value"]))
        device = row["device"]
    modes = {}
    for (mode, model, subnets, space, crop, batch), own in values.items():
        joules = fmean(own["joules_per_image"]) if own["joules_per_image"] else None
        seconds = fmean(own["seconds"]) / int(batch)
        modes[mode, model, int(subnets), space] = Measured(seconds, joules, int(crop), int(batch))
    return StepFile(device, modes)


@dataclass(frozen=True, slots=True)
class Rate:
    """A step's cost on one GPU.

    Attributes:
        seconds: per image.
        plain: per image of common training, seconds.
        calls: residual blocks per step.
        joules: per image; None where not measured on this GPU.
        label: measured or estimated.
        source: from what.
    """

    seconds: float
    plain: float
    calls: float
    joules: float | None
    label: str
    source: str


def find_rate(work: Work, gpu: str, files: Sequence[StepFile]) -> Rate:
    """By rows of this GPU; of another, scaled by published figures; or by published figures and a ratio.

    Raises:
        ConfigError: a network without rows that no published figure speaks for.
    """
    files = sorted(files, key=lambda file: (file.gpu != gpu, not file.gpu, file.distance(work)))
    gpus = [file for file in files if file.gpu]
    for file in gpus:
        ratio, plain = file.ratio(work.mode, work), file.seconds("ct", work)
        if ratio and plain:
            return _from_rows(work, gpu, file, ratio, plain)
    plain, plain_source = _plain(work, gpu, gpus)
    ratio, ratio_source = _ratio(work, files)
    source = f"{plain_source}; {ratio:.2f} times that by {ratio_source}"
    return Rate(ratio * plain, plain, work.cost.calls, None, "estimated", source)


def _from_rows(work: Work, gpu: str, file: StepFile, ratio: float, plain: float) -> Rate:
    found = file.find(work.mode, work)
    assert found is not None
    plain *= _slower(gpu, file.gpu)
    own = file.gpu == gpu
    source = f"rows of {file.device}, crop {found.crop}, batch {found.batch}"
    source += "" if own else f", scaled by {_slower(gpu, file.gpu):.2f} (Lambda's ResNet-50 with AMP)"
    joules = found.joules if own and found.crop == work.crop else None
    label = "measured" if own else "estimated"
    return Rate(ratio * plain, plain, work.cost.calls, joules, label, source)


def _slower(gpu: str, other: str) -> float:
    return GPUS[other].relative / GPUS[gpu].relative


def _plain(work: Work, gpu: str, files: Sequence[StepFile]) -> tuple[float, str]:
    """Common training's seconds per image on a GPU, and from what."""
    for file in files:
        seconds = file.seconds("ct", work)
        if seconds and not work.fp32:
            return seconds * _slower(gpu, file.gpu), f"plain training by rows of {file.device}"
    if not isinstance(meta_network(work.model, work.classes), ResidualStages):
        raise ConfigError(
            f"--recipe trains {work.model}; allowed: ResNets, whose speeds are published, or what "
            "bench step has measured on a GPU"
        )
    precision = "tf32" if work.fp32 else "amp"
    flops = work.plain.flops / plain_cost(PLAIN_MODEL, PLAIN_CROP).flops
    rate = plain_rate(gpu, precision)
    source = f"plain {PLAIN_MODEL} at {PLAIN_CROP} published: {rate:.0f} img/s {precision} ({PLAIN_SOURCE}"
    source += ")" if gpu == "a100" else "' A100, by Lambda's ratio)"
    source += f", scaled by FLOPs to {work.model} at {work.crop}"
    return flops / rate, source


def _ratio(work: Work, files: Sequence[StepFile]) -> tuple[float, str]:
    """The mode's seconds over common training's, and from what; a CPU runs both in float32."""
    for file in files:
        ratio = file.ratio(work.mode if file.gpu else work.mode.partition(":")[0], work)
        if ratio:
            return ratio, f"rows of {file.device}"
    return work.cost.flops / work.plain.flops, "FLOPs of its draws"
