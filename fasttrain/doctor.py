"""What this machine has, and what the trainer would choose on it."""

from __future__ import annotations

import importlib.metadata
import platform
import threading
from collections.abc import Callable, Iterable, Iterator

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

Findings = Iterable[tuple[str, str]]

SECONDS = 10.0
"""That each subject has to answer: a driver or a file system that hangs never does."""
COMPILING = 120.0
"""The same for the kernels, which are compiled the first time."""


def report() -> Iterator[tuple[str, str]]:
    """Pairs of a subject and what was found."""
    yield "Python", platform.python_version()
    yield "torch", torch.__version__
    yield from answers("CUDA", _cuda, SECONDS)
    for subject, names in (("DALI", _DALI), ("triton", ("triton",)), ("timm", ("timm",))):
        yield subject, _version(*names)
    yield from answers("NVML", lambda: [("NVML", nvml.describe())], SECONDS)
    yield "apex", nvidia_apex.found()
    yield from answers("kernels", _kernels, COMPILING)
    yield from answers("chosen here", _choices, COMPILING)
    yield "environment", " ".join(f"{name}={value}" for name, value in variables().items()) or "plain"


def answers(subject: str, probe: Callable[[], Findings], seconds: float) -> Findings:
    """What a probe finds; if it takes too long it is left behind, and this is told of its subject.

    Raises:
        Exception: that of the probe.
    """
    found: list[tuple[str, str]] = []
    failure: list[Exception] = []

    def ask() -> None:
        try:
            found.extend(list(probe()))
        except Exception as error:
            failure.append(error)

    asking = threading.Thread(target=ask, name=f"doctor: {subject}", daemon=True)
    asking.start()
    asking.join(seconds)
    if failure:
        raise failure[0]
    return [(subject, f"no answer within {seconds:g} s")] if asking.is_alive() else found


_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def _cuda() -> Findings:
    usable = "usable" if torch.cuda.is_available() else "no GPU that torch can use"
    yield "CUDA", f"{torch.version.cuda}, {usable}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _kernels() -> Findings:
    yield "kernels", triton_fault(choose_device("auto")) or "Triton's compute what their references do"


def _choices() -> Findings:
    device = choose_device("auto")
    precision = choose_precision("auto", device)
    yield "chosen here", describe(device, precision, Run().tf32)
    batch_norm = choose_batch_norm("auto", device, precision, Run().channels_last)
    loss, sgd = choose_kernels("auto", device), choose_impl(Optim(), device)
    yield "", f"loss {loss}, batch norm {batch_norm}, SGD {sgd}"


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return f"{importlib.metadata.version(name)} ({name})"
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"missing: {distributions[0]}"
