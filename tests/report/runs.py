"""Runs' folders without a run: the files that training writes, by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fasttrain.config import to_dict
from fasttrain.recipes import recipe

TRAIN: list[dict[str, Any]] = [
    {
        "kind": "train",
        "epoch": epoch,
        "step": 0,
        "global_step": 20 * epoch,
        "time": f"2026-01-02T03:0{epoch}:00Z",
        "loss": loss,
        "main_loss": loss - 0.2,
        "subnet_loss": 0.1,
        "train_top1": 30.0 * epoch,
        "gradient_norm": 1.5,
        "lr": 0.1 / epoch,
        "images_per_second": 640.0,
        "images_per_second_per_process": 320.0,
        "step_ms": 100.0,
        "step_ms_p50": 99.0,
        "step_ms_p95": 120.0,
        "data_wait": 0.01,
        "flops_per_image": 2.5e8,
        "mfu": None,
        "eta_seconds": 5.0,
    }
    for epoch, loss in ((1, 2.3), (2, 1.2))
]
"""Two reports of training."""

EVALUATION: dict[str, Any] = {
    **{"kind": "evaluation", "epoch": 2, "step": 0, "global_step": 40, "time": "2026-01-02T03:03:00Z"},
    **{"top1": 88.5, "top5": 99.0, "loss": 0.4, "images": 355},
}

SUBNETS: dict[str, Any] = {
    **{"kind": "subnets", "epoch": 2, "step": 0, "global_step": 40, "time": "2026-01-02T03:04:00Z"},
    **{"statistics": "reestimated", "subnets": 4, "mean": 80.0, "deviation": 7.07, "worst": 70.0},
    "depths": [[1, 1, 1], [2, 3, 1], [1, 2, 3], [3, 3, 3]],
    "top1": [70.0, 80.0, 80.0, 90.0],
}


def write_run(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    records: Sequence[dict[str, Any]] = (*TRAIN, EVALUATION),
    log: str = "",
) -> Path:
    """A run's folder, of the demo and done unless told otherwise; the folder."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    done = {"state": "done", "time": "2026-01-02T03:04:05Z", "epoch": 2, "global_step": 40, "exit_status": 0}
    manifest = {"sha256": "0123456789abcdef" * 4, "bytes": 1_500_000, "step": 40, "epoch": 2}
    for name, value in (
        ("config.json", to_dict(recipe("demo")) if config is None else config),
        (
            "environment.json",
            {"fasttrain": "0.1.0", "nvml": "no driver here"} if environment is None else environment,
        ),
        ("status.json", done if status is None else status),
        ("checkpoints/step-00000040.json", manifest),
    ):
        (folder / name).write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (folder / "log.txt").write_text(log)
    return folder
