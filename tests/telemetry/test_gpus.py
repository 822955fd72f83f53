"""GPUs by NVML: found by UUID, sampled in a thread, summed up over processes; none where there is none."""

from __future__ import annotations

import math
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fasttrain.telemetry import gpus, nvml
from fasttrain.telemetry.gpus import Sampler, summarize
from fasttrain.telemetry.nvml import SLOWDOWNS, Gpu, Sample

SAMPLE = Sample(80.0, 1e9, 300.0, 60.0, 1500.0, 0x4, 1000.0)


def test_slowdowns_are_the_librarys() -> None:
    pynvml = pytest.importorskip("pynvml")
    for bit, name in SLOWDOWNS.items():
        camel = "".join(part.capitalize() for part in name.split("_"))
        assert getattr(pynvml, f"nvmlClocksThrottleReason{camel}") == bit


def test_a_gpu_is_found_by_its_uuid(fake_nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES makes torch's GPU 0 another than NVML's first."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="bb"))
    gpu = nvml.find(torch.device("cuda", 0))
    sample = gpu.sample()
    assert sample == Sample(90, 3 << 30, 400, 66, 1980, 0x5, 1000)
    assert (gpu.driver(), gpu.power_limit()) == ("575.1", 700)
    gpu.close()
    assert fake_nvml.open == 0


def test_what_a_gpu_does_not_tell_is_unknown(fake_nvml: Any) -> None:
    fake_nvml.missing = {"utilisation", "reasons", "energy"}
    sample = Gpu("aa").sample()
    assert math.isnan(sample.utilisation)
    assert math.isnan(sample.joules)
    assert sample.slowdowns == 0
    assert sample.watts == 100


def test_why_nothing_is_known(fake_nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(nvml.Unavailable, match="does not know GPU cc: Not Found"):
        Gpu("cc")
    assert fake_nvml.open == 0
    assert nvml.describe() == "driver 575.1, 2 GPUs"
    fake_nvml.driver = False
    assert nvml.describe() == "not usable here (Driver Not Loaded)"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.describe() == "missing: nvidia-ml-py"
    sampler, why = gpus.start_sampler(torch.device("cpu"))
    assert sampler is None
    assert why == "no GPU is used"


def test_a_thread_samples_and_ends(fake_nvml: Any) -> None:
    sampler = Sampler(Gpu("bb"), seconds=0.01)
    deadline = time.monotonic() + 30
    while len(sampler.samples) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    told = sampler.take()
    assert (told["utilisation"], told["celsius"], told["sw_power_cap"], told["hw_slowdown"]) == (90, 66, 1, 0)
    sampler.close()
    assert "nvml" not in {thread.name for thread in threading.enumerate()}
    assert fake_nvml.open == 0
    assert not math.isnan(sampler.take()["mhz"]), "the last sample stays known"


def test_energy_is_the_counters_difference_between_calls() -> None:
    """The first sample is the last of the call before: energy goes on there, the rest counts once."""
    later = SAMPLE._replace(utilisation=40.0, celsius=70.0, slowdowns=0, watts=1.0, joules=1500.0)
    told = summarize([(10.0, SAMPLE), (12.0, later)])
    assert told["watts"] == 250
    assert (told["utilisation"], told["celsius"], told["sw_power_cap"]) == (40, 70, 0)
    assert summarize([(10.0, SAMPLE)])["watts"] == 300  # one sample: its own
    without = [(10.0, SAMPLE._replace(joules=math.nan)), (12.0, later._replace(joules=math.nan))]
    assert summarize(without)["watts"] == 150.5
    assert all(map(math.isnan, summarize([]).values()))


def test_all_gpus_of_a_run() -> None:
    hot = SAMPLE._replace(watts=500.0, celsius=80.0, memory=2.0**31, slowdowns=0)
    told = gpus.metrics([summarize([(0.0, SAMPLE)]), summarize([(0.0, hot)])], images_per_second=1600.0)
    assert told == {
        "gpu_utilisation": 80,
        "gpu_memory_gib": 2,
        "gpu_watts": 800,
        "gpu_celsius": 80,
        "gpu_mhz": 1500,
        "gpu_slowdowns": {"sw_power_cap": 0.5},
        "joules_per_image": 0.5,
    }
