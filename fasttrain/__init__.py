"""fasttrain: stimulative training of residual networks, made cheap."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stimulation import stimulate

__version__ = "0.1.0"
__all__ = ["__version__", "stimulate"]


def __getattr__(name: str) -> Any:
    """`stimulate`, whose import takes torch's seconds, once somebody asks for it."""
    if name != "stimulate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .stimulation import stimulate

    return stimulate
