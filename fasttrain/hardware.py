"""What the trainer chooses on a machine: device and precision."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast, get_args

import torch

from .config import Run
from .errors import ConfigError
from .kernels.runtime import Kernels, runs_triton


@dataclass(frozen=True, slots=True)
class Precision:
    """Arithmetic of forward and backward; weights, optimizer and losses stay in float32.

    Attributes:
        name: bf16, fp16 or fp32.
        device_type: cpu or cuda.
    """

    name: str
    device_type: str

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        dtype = torch.float16 if self.name == "fp16" else torch.bfloat16
        return torch.autocast(self.device_type, dtype, enabled=self.name != "fp32")

    @property
    def image_dtype(self) -> torch.dtype:
        """What the loader should hand over: half the bytes where the first convolution casts anyway."""
        return torch.float32 if self.name == "fp32" else torch.float16


def choose_device(setting: str, local_rank: int = 0) -> torch.device:
    """The device of one process.

    Raises:
        ConfigError: CUDA asked for where there is none, or fewer GPUs than processes.
    """
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("run.device is 'cuda'; allowed here: cpu (torch sees no GPU)")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine needs a GPU of its own; torch sees "
            f"{torch.cuda.device_count()}"
        )
    return torch.device("cuda", local_rank)


def choose_precision(setting: str, device: torch.device) -> Precision:
    """`setting`, or for `auto` what the device computes in hardware: bf16, else fp16 (GPU), else fp32."""
    if setting == "auto":
        if device.type == "cuda":
            setting = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            setting = "bf16" if cpu_has_bf16() else "fp32"
    return Precision(setting, device.type)


def choose_kernels(setting: str, device: torch.device) -> Kernels:
    """Implementation of the loss: `run.kernels`, or for `auto` Triton on a GPU where its kernels hold.

    Raises:
        ConfigError: Triton where it does not run, or not right.
    """
    if setting == "triton" and triton_fault(device):
        raise ConfigError(f"run.kernels is 'triton'; allowed here: auto, reference ({triton_fault(device)})")
    if setting == "auto":
        return "triton" if device.type == "cuda" and not triton_fault(device) else "reference"
    return cast(Kernels, setting)


def choose_batch_norm(setting: str, device: torch.device, precision: Precision, channels_last: bool) -> str:
    """`model.batch_norm`, or for `auto` Triton with channels_last on a GPU where it holds, else torch.

    Raises:
        ConfigError: an implementation that the device, precision or memory format does not allow.
    """
    if setting == "auto":
        fused = device.type == "cuda" and channels_last and not triton_fault(device)
        return "triton" if fused else "torch"
    if setting in ("torch", "reference"):
        return setting
    name = f"model.batch_norm is {setting!r}; allowed here: auto, torch, reference"
    if setting == "triton" and triton_fault(device):
        raise ConfigError(f"{name} ({triton_fault(device)})")
    if setting == "apex" and (device.type != "cuda" or precision.name != "fp16"):
        raise ConfigError(f"{name} (apex needs a GPU and run.precision fp16)")
    if not channels_last:
        raise ConfigError(f"{name} ({setting} needs run.channels_last)")
    return setting


def choose_conv1x1(setting: str, batch_norm: str) -> str:
    """`model.conv1x1`, for the chosen implementation of batch norm.

    Raises:
        ConfigError: an implementation other than batch norm's, whose work these convolutions share.
    """
    if setting not in ("torch", batch_norm):
        raise ConfigError(
            f"model.conv1x1 is {setting!r}; allowed with batch norm {batch_norm}: "
            f"{f'torch, {batch_norm}' if batch_norm in get_args(Kernels) else 'torch'}"
        )
    return setting


def triton_fault(device: torch.device) -> str:
    """Why Triton's kernels cannot be used on a device; empty if they can. On a GPU they are tried, once."""
    if not runs_triton(device):
        return "Triton runs on GPUs, and on a CPU under TRITON_INTERPRET=1 for tests"
    if device.type == "cpu":
        return ""
    from .kernels.verify import fault

    return fault(device)


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; without it oneDNN emulates, slower than float32."""
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("amx_bf16") or flags.get("avx512_bf16"))


def configure_backends(run: Run, device: torch.device) -> None:
    """TF32 and cuDNN's search for the fastest convolution, as `run` says."""
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    precision = "tf32" if run.tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = True


def describe(device: torch.device, precision: Precision, tf32: bool) -> str:
    """One line for the log."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads, {precision.name}"
    name = torch.cuda.get_device_name(device)
    return f"{name}, {precision.name}, TF32 {'on' if tf32 else 'off'} for float32 work"
