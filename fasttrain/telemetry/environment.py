"""Where a run ran: versions, machine, commit, and those environment variables that may be shown."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from . import nvml
from .files import now

_SHOWN = re.compile(
    r"CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|CUBLAS_WORKSPACE_CONFIG|OMP_NUM_THREADS|KMP_AFFINITY|"
    r"PYTORCH_(CUDA_)?ALLOC_CONF|NVIDIA_TF32_OVERRIDE|TRITON_INTERPRET|WORLD_SIZE|LOCAL_WORLD_SIZE|"
    r"SLURM_(JOB_ID|JOB_NUM_NODES|JOB_NODELIST|JOB_PARTITION|RESTART_COUNT)|(NCCL|GLOO|TORCH_NCCL)_\w+"
)
"""Variables that change what a run computes or how fast; no other is ever recorded."""

GIT = 10.0
"""Seconds that git has to answer: its folder may be on a file system that is away."""

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def redact(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables with the values of *KEY*, *TOKEN*, *SECRET*, *PASSWORD* and the like hidden."""
    return {name: "(hidden)" if _SECRET.search(name) else value for name, value in variables.items()}


def variables() -> dict[str, str]:
    """The environment variables that may be shown, in order of their names."""
    shown = {name: value for name, value in sorted(os.environ.items()) if _SHOWN.fullmatch(name)}
    return redact(shown)


def environment() -> dict[str, Any]:
    """Versions, machine and commit, for the record."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "fasttrain": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in ("triton", "timm", "nvidia-dali-cuda130", "nvidia-dali-cuda120")},
        "cuda": torch.version.cuda,
        "machine": platform.platform(),
        "gpus": gpus,
        "nvml": nvml.describe(),
        "variables": variables(),
        "started": now(),
    }


def _version(distribution: str) -> str:
    """Of an installed package; empty without it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """The checked-out commit of this source tree; empty outside of one, and where git is not or hangs."""
    source = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=GIT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()
