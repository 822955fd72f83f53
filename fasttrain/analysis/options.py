"""What the analyses can be told; a string under each field is its help on the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every analysis takes."""

    output: str = ""
    """Folder for the JSON file and the picture (-o); empty: `analysis` in the first run's folder."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(Options):
    """What the analyses take that run the network of a checkpoint."""

    checkpoint: Literal["best", "last"] = "best"
    """Which of a folder's checkpoints; the last where there is no best."""
    recipe: str = ""
    """The recipe or config.json that files of weights fit, such as the published code's; of runs none."""
    classes: str = ""
    """The order of the outputs: a file with the class folders' names, one per line, or natural (as timm sorts
    them); empty: as the weights name them, else as the images' folders are sorted."""
    images: int = 0
    """How many of the validation images, evenly spread over them; 0: all."""
    batch: int = 0
    """Images per batch; 0: as in the run."""
    train: str = ""
    """Training images for the batch-norm statistics; empty: as in the run."""
    val: str = ""
    """Validation images; empty: as in the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        check_least("images", self.images, 0)
        check_least("batch", self.batch, 0)

    @property
    def calibrates(self) -> bool:
        """Whether batch-norm statistics are re-estimated, so that training images are needed."""
        return getattr(self, "statistics", "main") != "main"


@dataclass(frozen=True, kw_only=True)
class SubnetOptions(NetworkOptions):
    """What the analyses of a sampling space take."""

    space: str = ""
    """The sampling space, as method.space; empty: the run's."""
    subnets: int = -1
    """How many subnets of the space; -1: all."""
    statistics: Literal["reestimated", "main"] = "reestimated"
    """Whose batch-norm statistics the subnets run with: their own, or the main network's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subnets != -1:
            check_least("subnets", self.subnets, 1)


@dataclass(frozen=True, kw_only=True)
class AlterationOptions(NetworkOptions):
    """What the analyses of deleted and permuted blocks take."""

    statistics: Literal["main", "reestimated"] = "main"
    """Whose batch-norm statistics: those of the intact network, which is altered at test time alone, or
    re-estimated for each altered one."""


MOST_SAMPLES = 100_000
"""Altered networks that are drawn at most."""
MOST_SEED = 2**31 - 1
"""The largest seed, as of `run.seed`."""


def check_least(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raises ConfigError unless an option is at least, and at most, so much."""
    if not least <= value <= most:
        allowed = f"at least {least}" if math.isinf(most) else f"{least} to {most}"
        raise ConfigError(f"--{name} is {value}; allowed: {allowed}")
