"""The kernels' trial at the start of a run: right ones pass, wrong and failing ones are named, not used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fasttrain import hardware
from fasttrain.errors import ConfigError
from fasttrain.kernels import verify
from fasttrain.kernels.runtime import Kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    verify.fault.cache_clear()
    yield
    verify.fault.cache_clear()


def test_the_kernels_hold() -> None:
    assert verify.fault(DEVICE) == ""


def wrong(device: torch.device, kernels: Kernels) -> Iterator[torch.Tensor]:
    yield torch.ones(3) if kernels == "reference" else torch.tensor([1.0, 1.0, 1.01])


def not_a_number(device: torch.device, kernels: Kernels) -> Iterator[torch.Tensor]:
    yield torch.ones(3) if kernels == "reference" else torch.full((3,), torch.nan)


def failing(device: torch.device, kernels: Kernels) -> Iterator[torch.Tensor]:
    raise RuntimeError("no compiler found\nlooked everywhere")


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (wrong, "wrong computes something else than its reference"),
        (not_a_number, "not_a_number computes something else than its reference"),
        (failing, "RuntimeError: no compiler found"),
    ],
)
def test_faults_are_named(operation: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_loss", operation)
    assert verify.fault(torch.device("cpu")) == message


def test_what_is_wrong_on_a_gpu_is_not_used_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, bf16 = torch.device("cuda"), hardware.Precision("bf16", "cuda")
    monkeypatch.setattr(verify, "fault", lambda device: "")
    assert hardware.choose_kernels("auto", cuda) == "triton"
    assert hardware.choose_batch_norm("auto", cuda, bf16, True) == "triton"
    assert hardware.choose_batch_norm("auto", cuda, bf16, False) == "torch"
    monkeypatch.setattr(verify, "fault", lambda device: "no compiler found")
    assert hardware.choose_kernels("auto", cuda) == "reference"
    assert hardware.choose_batch_norm("auto", cuda, bf16, True) == "torch"
    with pytest.raises(ConfigError, match=r"run\.kernels is 'triton'.*no compiler found"):
        hardware.choose_kernels("triton", cuda)
    with pytest.raises(ConfigError, match=r"model\.batch_norm is 'triton'.*no compiler found"):
        hardware.choose_batch_norm("triton", cuda, bf16, True)
