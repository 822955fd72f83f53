"""The published NIPS22-ST `train.py`: its flags, the configuration they amount to, and one of its steps."""

from .config import Equivalent, equivalent
from .flags import Flags, Parser, add_flags, parse
from .replay import Replay, replay

__all__ = ["Equivalent", "Flags", "Parser", "Replay", "add_flags", "equivalent", "parse", "replay"]
