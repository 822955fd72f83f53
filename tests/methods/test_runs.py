"""Whole runs of the baselines: they resume exactly, and what they leave holds the plain network alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from fasttrain.launch.preflight import check_run
from fasttrain.models import create_model
from fasttrain.reevaluate import evaluate_checkpoint
from fasttrain.trainer import train

from ..test_trainer import assert_same, configure, images, weights

__all__ = ["images"]

PLAIN = {"subnets": 1, "subnet_inputs": "full", "sizes": (), "normalize": "none", "normalize_main": True}


@pytest.mark.parametrize("name", ["self_distillation", "stochastic_depth"])
def test_a_resumed_run_is_the_uninterrupted_one(images: Path, tmp_path: Path, name: str) -> None:
    method = {"name": name, **PLAIN}
    whole = configure(images, tmp_path / "whole", method=method)
    summary = train(whole)
    train(configure(images, tmp_path, method=method, run={"max_steps": 3}))
    train(configure(images, tmp_path, method=method))
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "whole" / "run")
    for part in ("auxiliary", "network", "optimizer", "ema", "position"):
        assert_same(ours[part], theirs[part])
    assert (ours["auxiliary"] is not None) == (name == "self_distillation")
    folder = tmp_path / "run" / "checkpoints"
    plain = set(create_model("cifar_resnet20", 3).state_dict())
    for file in ("best", "last"):
        with safe_open(folder / f"{file}.safetensors", framework="pt") as stored:
            assert set(stored.keys()) == plain
    verdict = evaluate_checkpoint(tmp_path / "run", which="last", subnets=5)
    assert verdict.main == summary.main
    assert verdict.subnets[0].top1 == summary.subnets[0].top1
    assert any("finished" in line or "goes on" in line for line in check_run(whole))
