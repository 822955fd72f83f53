"""A stand-in for NVIDIA's management library, as there need not be a GPU."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class FakeNvml(ModuleType):
    """Two GPUs by UUID; the tests change what they tell. Functions in `missing` are not supported."""

    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM = 0, 1

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = 0
        self.driver = True
        self.missing: set[str] = set()
        self.gpus: dict[str, dict[str, Any]] = {
            f"GPU-{uuid}": {"watts": watts, "joules": 1000.0, "used": 3 << 30, "reasons": 0x1 | 0x4}
            for uuid, watts in (("aa", 100.0), ("bb", 400.0))
        }

    def _known(self, name: str) -> None:
        if name in self.missing:
            raise self.NVMLError("Not Supported")

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "575.1"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> dict[str, Any]:
        if uuid not in self.gpus:
            raise self.NVMLError("Not Found")
        return self.gpus[uuid]

    def nvmlDeviceGetUtilizationRates(self, gpu: dict[str, Any]) -> SimpleNamespace:
        self._known("utilisation")
        return SimpleNamespace(gpu=90)

    def nvmlDeviceGetMemoryInfo(self, gpu: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(used=gpu["used"])

    def nvmlDeviceGetPowerUsage(self, gpu: dict[str, Any]) -> float:
        return 1000 * gpu["watts"]

    def nvmlDeviceGetTemperature(self, gpu: dict[str, Any], sensor: int) -> int:
        return 66

    def nvmlDeviceGetClockInfo(self, gpu: dict[str, Any], clock: int) -> int:
        return 1980

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: dict[str, Any]) -> int:
        self._known("reasons")
        return gpu["reasons"]

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: dict[str, Any]) -> float:
        self._known("energy")
        return 1000 * gpu["joules"]

    def nvmlDeviceGetPowerManagementLimit(self, gpu: dict[str, Any]) -> float:
        return 700_000


@pytest.fixture
def fake_nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    module = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module
