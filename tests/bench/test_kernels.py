"""`python -m bench kernels`: correctness anywhere, what is wrong named and not timed, rows and table."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import bench.checks
import bench.kernels
from bench.__main__ import main
from bench.accuracy import Comparison
from bench.case import Case, Check
from bench.kernels import timing


def test_one_operation_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "--device", "cpu", "--ops", "batchnorm_act_pool"]) == 0
    out = capsys.readouterr().out
    assert "checks hold on cpu" in out
    assert "correctness is all that is measured" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "nix"], "--ops holds 'nix'; allowed: normalized_loss, batchnorm_act"),
        (["--calls", "1"], "--calls is 1; allowed: at least 3"),
        (["--nix"], "unrecognized arguments: --nix"),
    ],
)
def test_mistakes_exit_with_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", *arguments]) == 2
    assert message in capsys.readouterr().err


def comparison(error: float) -> Comparison:
    exact = torch.ones(3, dtype=torch.float64)
    return Comparison("y", (exact + error).float(), exact.float(), exact)


def test_the_bound_is_twice_the_native_error_and_four_units() -> None:
    exact = torch.tensor([1.0, -2.0], dtype=torch.float64)
    eps = torch.finfo(torch.float32).eps
    Comparison("y", (exact + 8 * eps).float(), exact.float(), exact).check()
    with pytest.raises(AssertionError, match=r"y \(torch.float32, \(2,\)\): error"):
        Comparison("y", (exact + 9 * eps).float(), exact.float(), exact).check()
    Comparison("y", (exact + 0.02).float(), (exact - 0.01).float(), exact).check()
    with pytest.raises(AssertionError, match="error nan"):
        Comparison("y", (exact * torch.nan).float(), exact.float(), exact).check()
    with pytest.raises(AssertionError, match="shape"):
        Comparison("y", exact.float()[:1], exact.float(), exact).check()


def crash() -> Iterator[Comparison]:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize("compare", [lambda: [comparison(0.0), comparison(0.1)], crash])
def test_wrong_results_are_named_and_not_timed(
    compare: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = SimpleNamespace(checks=lambda device: [Check("odd shapes", compare)])
    measured: list[str] = []
    monkeypatch.setattr(bench.checks.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(bench.kernels, "choose_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(bench.kernels, "_measure", lambda modules, *rest: measured.extend(modules))
    with pytest.raises(bench.checks.WrongResultError, match="wrong on meta: batchnorm_act"):
        bench.kernels.main(["--ops", "batchnorm_act"])
    assert "batchnorm_act: WRONG: odd shapes: " in capsys.readouterr().out
    assert measured == []


def test_rows_and_table_of_a_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On invented times: no GPU is needed to see that they end where they belong."""
    seconds = {"eager": 4e-3, "triton": 1e-3}

    def measured(call: Any, sets: list[Any], device: torch.device, calls: int) -> dict[str, Any]:
        if call(sets[0]) == "compile":
            raise torch.OutOfMemoryError
        return {
            "seconds": ("s", [seconds[call(sets[0])]] * calls),
            "host_seconds": ("s", [5e-5] * calls),
            "launches": ("kernels", [2]),
            "peak_bytes": ("B", [2**20]),
        }

    monkeypatch.setattr(timing, "_measure_call", measured)
    monkeypatch.setattr(timing, "copy_rate", lambda device: 4e12)
    monkeypatch.setattr(timing, "environment", lambda device: {"device": "GPU", "commit": "c0ffee"})
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=2**20)
    )
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    calls = {name: partial(lambda name, one: name, name) for name in ("eager", "compile", "triton")}
    case = Case("2x3", moved=10**9, prepare=lambda: None, calls=calls)
    module: Any = SimpleNamespace(cases=lambda device: [case])
    path = tmp_path / "kernels.csv"
    timing.measure_operations({"loss": module}, torch.device("cuda"), 5, path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == timing.COLUMNS
    times = {row["implementation"]: float(row["p50"]) for row in rows if row["metric"] == "seconds"}
    assert times == seconds
    out = capsys.readouterr().out
    assert "loss, 2x3, compile: out of memory, left out" in out
    line = next(line for line in out.splitlines() if " triton " in line)
    assert line.split() == ["loss", "2x3", "triton", "1000.0", "4.00", "1000", "25", "%", "2", "50", "1.0"]
