"""What `fasttrain doctor` asks for may hang, and is then left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fasttrain import doctor
from fasttrain.telemetry import nvml


@pytest.fixture
def driver() -> Iterator[threading.Event]:
    """Set, and the driver that hung answers; at the end it does."""
    answers = threading.Event()
    yield answers
    answers.set()
    for thread in threading.enumerate():
        if thread.name.startswith("doctor: "):
            thread.join()


def test_a_probe_that_hangs_is_left_behind(driver: threading.Event) -> None:
    def probe() -> Iterator[tuple[str, str]]:
        yield "NVML", "first"
        driver.wait()

    assert list(doctor.answers("NVML", probe, 0.05)) == [("NVML", "no answer within 0.05 s")]
    driver.set()
    assert list(doctor.answers("NVML", probe, 60)) == [("NVML", "first")]


def test_a_fault_of_the_program_is_shown() -> None:
    with pytest.raises(ZeroDivisionError):
        doctor.answers("CUDA", lambda: [("CUDA", str(1 // 0))], 60)


def test_a_driver_that_hangs_leaves_the_rest(
    driver: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML, torch's look for GPUs, and the kernels' trial."""

    def hang(*question: object) -> bool:
        driver.wait()
        return False

    monkeypatch.setattr(nvml, "describe", hang)
    monkeypatch.setattr(doctor.torch.cuda, "is_available", hang)
    monkeypatch.setattr(doctor, "triton_fault", hang)
    monkeypatch.setattr(doctor, "SECONDS", 0.05)
    monkeypatch.setattr(doctor, "COMPILING", 0.05)
    found = dict(doctor.report())
    for subject in ("CUDA", "NVML", "kernels", "chosen here"):
        assert found[subject] == "no answer within 0.05 s"
    assert found["DALI"] != found["NVML"]
    assert "environment" in found
