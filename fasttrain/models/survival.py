"""Residual branches that are left out at random in training: stochastic depth (Huang et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ConfigError
from .drop import PATHS
from .staged import StagedNetwork


class Survival(nn.Module):
    """What a residual branch's output passes: zero for some images of a training batch, scaled up for others.

    Attributes:
        probability: of survival.
    """

    def __init__(self, probability: float) -> None:
        """Nothing is left out before the first `draw`."""
        super().__init__()
        self.probability = probability
        self.factors: Tensor | None = None

    def draw(self, uniform: Tensor) -> None:
        """Decide on the next batch by a number of [0, 1) for each image [B]."""
        self.factors = (uniform < self.probability) / self.probability

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] to the same; in evaluation mode as it is."""
        if not self.training or self.factors is None:
            return x
        return x * self.factors.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))

    def extra_repr(self) -> str:
        """As `print(network)` shows it."""
        return f"{self.probability:g}"


def set_survival(network: StagedNetwork, last: float) -> None:
    """Let residual branches be left out, in place; before batch norms are fused.

    Branches that a block adds to nothing (it has no shortcut) always survive.

    Args:
        network: of timm's blocks.
        last: probability of survival of the last block's branches; it falls linearly from 1 (equation 4).

    Raises:
        ConfigError: no block has a place for it.
    """
    for index, ref in enumerate(network.full, start=1):
        block = network.stages[ref.stage][ref.block]
        places = [name for name in PATHS if hasattr(block, name)] if network.has_shortcut(block) else []
        for name in places:
            setattr(block, name, Survival(1 - index / len(network.full) * (1 - last)))
    if not survivals(network):
        raise ConfigError(
            f"method.name is 'stochastic_depth'; {network.name or type(network).__name__} has no residual "
            "branch that could be left out; allowed: networks of timm's residual blocks"
        )


def survivals(network: StagedNetwork) -> list[Survival]:
    """Those of a network, first block first."""
    return [each for each in network.modules() if isinstance(each, Survival)]
