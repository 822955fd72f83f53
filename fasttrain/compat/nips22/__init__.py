"""The published NIPS22-ST `train.py`: its flags and the configuration they amount to; `replay`: its step."""

from .config import Equivalent, equivalent
from .flags import Flags, Parser, add_flags, parse

__all__ = ["Equivalent", "Flags", "Parser", "add_flags", "equivalent", "parse"]
