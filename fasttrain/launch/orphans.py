"""A process that ends with the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that the kernel sends a process when its parent ends."""


def end_with_launcher() -> None:
    """Under torchrun or launch.sh: be killed when that ends, whatever ended it.

    `kill -9` of torchrun would else leave its workers in the GPUs' memory. A trainer that was started by hand
    outlives its shell, as under nohup.
    """
    launched = "LOCAL_RANK" in os.environ or "FASTTRAIN_STATUS" in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
