"""How a measured step is executed: precision, memory format, kernels, compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from fasttrain.errors import ConfigError
from fasttrain.hardware import Precision, choose_batch_norm, choose_kernels
from fasttrain.kernels.runtime import Kernels


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to execute a step.

    Attributes:
        precision: bf16, fp16 or fp32.
        channels_last: memory format of weights and images; else contiguous.
        batch_norm: triton, reference, torch or apex, as `model.batch_norm` says it.
        kernels: triton or reference, of the loss.
        compile: what torch.compile takes at a time: `none`, each residual `block`, or the `whole` network.
        tuned: whether cuDNN times its algorithms for each shape.
    """

    precision: str
    channels_last: bool = True
    batch_norm: str = "torch"
    kernels: Kernels = "reference"
    compile: str = "none"
    tuned: bool = True

    def columns(self, device: torch.device) -> dict[str, Any]:
        """For the rows of a CSV file; float32 is tf32 on a GPU."""
        tf32 = self.precision == "fp32" and device.type == "cuda"
        return {
            "precision": "tf32" if tf32 else self.precision,
            "memory_format": "channels_last" if self.channels_last else "contiguous",
            "batch_norm": self.batch_norm,
            "kernels": self.kernels,
            "compile": self.compile,
        }


def _ours(device: torch.device, precision: str) -> Variant:
    norm = choose_batch_norm("auto", device, Precision(precision, device.type), True)
    return Variant(precision, batch_norm=norm, kernels=choose_kernels("auto", device))


def _triton(device: torch.device, precision: str) -> Variant:
    for field, choose in (
        ("batch norm", lambda: choose_batch_norm("triton", device, Precision(precision, device.type), True)),
        ("loss", lambda: choose_kernels("triton", device)),
    ):
        try:
            choose()
        except ConfigError as error:
            raise ConfigError(f"variant triton, {field}: {error}") from None
    return Variant(precision, batch_norm="triton", kernels="triton")


VARIANTS: dict[str, Callable[[torch.device, str], Variant]] = {
    "ours": _ours,
    "plain": lambda device, precision: Variant(precision),
    "triton": _triton,
    "contiguous": lambda device, precision: Variant(precision, channels_last=False),
    "fp32": lambda device, precision: Variant("fp32"),
    "bf16": lambda device, precision: replace(_ours(device, precision), precision="bf16"),
    "fp16": lambda device, precision: replace(_ours(device, precision), precision="fp16"),
    "block": lambda device, precision: replace(_ours(device, precision), compile="block"),
    "whole": lambda device, precision: replace(_ours(device, precision), compile="whole"),
    "published": lambda device, precision: Variant("fp32", channels_last=False, tuned=False),
}
"""Name to variant on a device: `ours` as the trainer chooses; `plain` without this project's kernels;
`triton` with all of them, wherever they run; `contiguous` plain, in the other memory format; a precision;
`block` and `whole` compiled; `published` as the published code runs."""
