"""The sums of some steps, over several processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain import distributed
from fasttrain.kernels.normalized_loss import StimulativeLoss
from fasttrain.step import StepResult
from fasttrain.telemetry.interval import Interval

CPU = torch.device("cpu")

WORKER = """
import json, sys, torch, torch.distributed as dist
from fasttrain import distributed
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
print(json.dumps(distributed.gather_over_processes({"a": rank + 0.1, "b": -rank}, torch.device("cpu"))))
dist.destroy_process_group()
"""


def result(loss: float, norm: float, hits: int = 1) -> StepResult:
    main, subnets = torch.tensor(loss / 2), torch.tensor([0.5, 1.5])
    return StepResult(
        StimulativeLoss(torch.tensor(loss), main, subnets, torch.tensor([hits, 4])),
        lr=0.1,
        gradient_norm=torch.tensor(norm),
        passes=(),
    )


def test_means_of_the_steps() -> None:
    interval = Interval(CPU, meter=lambda passes: 600.0)
    interval.add(result(2.0, 3.0, hits=1), 4)
    interval.add(result(4.0, 5.0, hits=3), 4)
    metrics = interval.collect()
    wanted = {"loss": 3, "loss_max": 3, "main_loss": 1.5, "subnet_loss": 1, "train_top1": 50, "lr": 0.1}
    wanted |= {"gradient_norm": 4, "flops_per_image": 150, "images": 8, "data_wait": 0}
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted)
    assert metrics["images_per_second"] == pytest.approx(8 / metrics["seconds"])
    assert metrics["step_ms"] == pytest.approx(1e3 * metrics["seconds"] / 2)
    assert 0 < metrics["step_ms_p50"] <= metrics["step_ms_p95"]
    assert not any(name.startswith("gpu") for name in metrics)
    interval.restart()
    interval.add(result(8.0, 1.0), 4)
    assert interval.collect()["loss"] == 8


def test_an_overflow_has_no_norm() -> None:
    interval = Interval(CPU)
    for norm in (math.inf, 2.0, math.nan):
        interval.add(result(1.0, norm), 4)
    assert interval.collect()["gradient_norm"] == 2
    interval.restart()
    interval.add(result(1.0, math.inf), 4)
    assert math.isnan(interval.collect()["gradient_norm"])


def test_the_worst_process_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(own: dict[str, float], device: torch.device) -> list[dict[str, float]]:
        return [own, own | {"loss": own["loss"] * 3, "wait": 0.5}]

    monkeypatch.setattr(distributed, "gather_over_processes", gather)
    interval = Interval(CPU)
    interval.add(result(2.0, 3.0), 4)
    metrics = interval.collect()
    assert (metrics["loss"], metrics["loss_max"], metrics["data_wait"]) == (4, 6, 0.5)
    assert metrics["images"] == 8
    assert metrics["images_per_second"] == 2 * metrics["images_per_second_per_process"]


def test_a_process_without_a_loss_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(own: dict[str, float], device: torch.device) -> list[dict[str, Any]]:
        return [own, own | {"loss": math.nan}]

    monkeypatch.setattr(distributed, "gather_over_processes", gather)
    interval = Interval(CPU)
    interval.add(result(2.0, 3.0), 4)
    assert math.isnan(interval.collect()["loss_max"])


def test_two_processes_know_each_others_numbers(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path / "store")]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)
    ]
    try:
        told = [json.loads(process.communicate(timeout=240)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert told == [[{"a": 0.1, "b": 0}, {"a": 1.1, "b": -1}]] * 2
