"""The published NIPS22-ST `train.py`: its flags and the configuration they amount to; `replay`: its step."""

from .config import Equivalent, equivalent
from .flags import Flags, add_flags, new_parser, parse
from .words import in_flags

__all__ = ["Equivalent", "Flags", "add_flags", "equivalent", "in_flags", "new_parser", "parse"]
