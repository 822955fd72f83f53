"""NVIDIA's management library: what a GPU does, found by its UUID whatever CUDA_VISIBLE_DEVICES says.

`pynvml` (package nvidia-ml-py) is imported when asked for. What a GPU or driver does not tell is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

SLOWDOWNS = {
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
}
"""Why clocks are lower than they could be: bits of nvml.h's nvmlClocksThrottleReason. Idleness, and clocks
that somebody set, are left out."""


class Unavailable(Exception):
    """NVML tells nothing here; the message says why."""


class Sample(NamedTuple):
    """A GPU at one moment.

    Attributes:
        utilisation: percent of the time in which a kernel ran.
        memory: bytes in use, by all processes.
        watts: drawn by the board.
        celsius: of the chip.
        mhz: of the multiprocessors.
        slowdowns: bits of `SLOWDOWNS`.
        joules: consumed since the driver was loaded.
    """

    utilisation: float
    memory: float
    watts: float
    celsius: float
    mhz: float
    slowdowns: int
    joules: float


class Gpu:
    """One GPU."""

    def __init__(self, uuid: str) -> None:
        """Find it.

        Args:
            uuid: as `torch.cuda.get_device_properties` has it, without "GPU-".

        Raises:
            Unavailable: no pynvml, no driver, or no such GPU.
        """
        self.nvml = _start()
        for prefix in ("GPU-", "MIG-"):
            try:
                self.handle = self.nvml.nvmlDeviceGetHandleByUUID(prefix + uuid)
                return
            except self.nvml.NVMLError as error:
                reason = error
        self.nvml.nvmlShutdown()
        raise Unavailable(f"NVML does not know GPU {uuid}: {reason}")

    def sample(self) -> Sample:
        """What it does now."""
        nvml, read = self.nvml, self._read
        slowdowns = read(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return Sample(
            utilisation=read(lambda handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            memory=read(lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            watts=read(nvml.nvmlDeviceGetPowerUsage) / 1000,
            celsius=read(lambda handle: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            mhz=read(lambda handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            slowdowns=0 if math.isnan(slowdowns) else int(slowdowns),
            joules=self.joules(),
        )

    def joules(self) -> float:
        """Consumed since the driver was loaded; the counter moves every 20 to 100 milliseconds."""
        return self._read(self.nvml.nvmlDeviceGetTotalEnergyConsumption) / 1000

    def power_limit(self) -> float:
        """Watts that the board may draw."""
        return self._read(self.nvml.nvmlDeviceGetPowerManagementLimit) / 1000

    def driver(self) -> str:
        """The driver's version."""
        return str(self.nvml.nvmlSystemGetDriverVersion())

    def close(self) -> None:
        """Let go of NVML."""
        self.nvml.nvmlShutdown()

    def _read(self, function: Callable[[Any], float]) -> float:
        try:
            return function(self.handle)
        except self.nvml.NVMLError:
            return math.nan


def find(device: torch.device) -> Gpu:
    """The GPU that torch calls `device`.

    Raises:
        Unavailable: a CPU, no pynvml, or no driver.
    """
    if device.type != "cuda":
        raise Unavailable("no GPU is used")
    return Gpu(str(torch.cuda.get_device_properties(device).uuid))


def describe() -> str:
    """The driver's version and the number of GPUs, or why nothing is known."""
    try:
        nvml = _start()
    except Unavailable as error:
        return str(error)
    try:
        return f"driver {nvml.nvmlSystemGetDriverVersion()}, {nvml.nvmlDeviceGetCount()} GPUs"
    except nvml.NVMLError as error:
        return f"not usable here ({error})"
    finally:
        nvml.nvmlShutdown()


def _start() -> Any:
    try:
        import pynvml
    except ImportError:
        raise Unavailable("missing: nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Unavailable(f"not usable here ({error})") from None
    return pynvml
