"""The published NIPS22-ST `train.py`: its flags, the configuration they amount to, and one of its steps."""

from .config import Equivalent, equivalent
from .flags import Flags, Parser, parse
from .replay import Replay, replay

__all__ = ["Equivalent", "Flags", "Parser", "Replay", "equivalent", "parse", "replay"]
