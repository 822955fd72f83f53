"""Training methods, one file each."""

from __future__ import annotations

from ..config import Config
from ..kernels.runtime import Kernels
from ..models import StagedNetwork
from .augsub import AugSub
from .common import Common
from .method import Method, Pass, Plan
from .stimulative import Stimulative, images_seen
from .stochastic_depth import StochasticDepth
from .supervision import AUXILIARY, SelfDistillation, Supervision


def build_method(
    config: Config,
    network: StagedNetwork,
    kernels: Kernels = "reference",
    rank: int = 0,
    classifiers: int = 0,
) -> Method:
    """The method that `config.method` names.

    Args:
        config: of the run.
        network: what is trained.
        kernels: implementation of the loss.
        rank: of this process, for draws that differ among processes.
        classifiers: how many are trained besides the network's own, where the method trains some.

    Raises:
        ConfigError: a sampling space, or a kind of drop, that does not fit the network.
    """
    if config.method.name in AUXILIARY:
        kind = SelfDistillation if config.method.name == "self_distillation" else Supervision
        return kind(config.method, network.full, classifiers, kernels=kernels)
    if config.method.name == "stochastic_depth":
        return StochasticDepth(config.method, network, seed=config.run.seed, rank=rank, kernels=kernels)
    if config.method.name == "augsub":
        return AugSub(config.method, network, seed=config.run.seed, rank=rank, kernels=kernels)
    if config.method.name == "common":
        return Common(
            network.full,
            label_smoothing=config.method.label_smoothing,
            main_loss=config.method.main_loss,
            target_threshold=config.method.target_threshold,
            kernels=kernels,
        )
    return Stimulative(
        config.method,
        network.full,
        network.depths,
        seed=config.run.seed,
        epochs=config.run.epochs,
        mean=config.data.mean,
        std=config.data.std,
        kernels=kernels,
        without_shortcut=network.without_shortcut,
    )


__all__ = [
    "AUXILIARY",
    "AugSub",
    "Common",
    "Method",
    "Pass",
    "Plan",
    "SelfDistillation",
    "Stimulative",
    "StochasticDepth",
    "Supervision",
    "build_method",
    "images_seen",
]
