"""What this machine has, and what the trainer would choose on it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator

import torch

from . import nvidia_apex
from .config import Optim, Run
from .hardware import (
    choose_batch_norm,
    choose_device,
    choose_kernels,
    choose_precision,
    describe,
    triton_fault,
)
from .optim import choose_impl
from .telemetry import nvml
from .telemetry.environment import variables


def report() -> Iterator[tuple[str, str]]:
    """Pairs of a subject and what was found."""
    yield "Python", platform.python_version()
    yield "torch", torch.__version__
    yield (
        "CUDA",
        f"{torch.version.cuda}, {'usable' if torch.cuda.is_available() else 'no GPU that torch can use'}",
    )
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    yield "DALI", _version("nvidia-dali-cuda130", "nvidia-dali-cuda120")
    yield "triton", _version("triton")
    yield "timm", _version("timm")
    yield "NVML", nvml.describe()
    yield "apex", nvidia_apex.found()
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    yield "kernels", triton_fault(device) or "Triton's compute what their references do"
    yield "chosen here", describe(device, precision, Run().tf32)
    batch_norm = choose_batch_norm("auto", device, precision, Run().channels_last)
    loss, sgd = choose_kernels("auto", device), choose_impl(Optim(), device)
    yield "", f"loss {loss}, batch norm {batch_norm}, SGD {sgd}"
    yield "environment", " ".join(f"{name}={value}" for name, value in variables().items()) or "plain"


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return f"{importlib.metadata.version(name)} ({name})"
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"missing: {distributions[0]}"
