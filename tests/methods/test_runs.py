"""Whole runs of methods and families: they resume exactly, and leave the plain network alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open

from fasttrain.errors import ConfigError
from fasttrain.export import export
from fasttrain.flops import meta_network
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


FAMILY_RUNS = {
    "swin_tiny_patch4_window7_224": {"name": "augsub", "mask_square": 8, **PLAIN},
    "densenetblur121d": {"name": "common", **PLAIN},
    "test_vit": {"name": "augsub", "drop": "dropout", **PLAIN},
}
"""Swin learns a mask token; it and the blurred DenseNet have buffers that no state dict holds."""


@pytest.mark.parametrize("model", FAMILY_RUNS)
def test_a_family_s_run_resumes_is_evaluated_and_exported(images: Path, tmp_path: Path, model: str) -> None:
    changes = {
        "method": FAMILY_RUNS[model],
        "model": {"name": model},
        "evaluation": {"subnets": 2, "calibration_images": 16, "batch": 8, "every": 1},
    }
    config = configure(images, tmp_path, **changes, run={"max_steps": 1, "epochs": 1})
    train(config)
    folder = tmp_path / "run" / "checkpoints"
    with safe_open(folder / "last.safetensors", framework="pt") as stored:
        assert set(stored.keys()) == set(meta_network(model, 3).state_dict())
    summary = train(replace(config, run=replace(config.run, max_steps=2)))
    (newest,) = folder.glob("step-00000002.pt")
    state = torch.load(newest, weights_only=True)
    assert (state["auxiliary"] is not None) == model.startswith("swin")
    verdict = evaluate_checkpoint(tmp_path / "run", which="last", subnets=2)
    assert verdict.main == summary.main
    file = tmp_path / "bare.safetensors"
    export(tmp_path / "run", "safetensors", file, which="last")
    if model.startswith("densenet"):
        with pytest.raises(ConfigError, match=r"data\.train is empty; .*--train DIR\), or --statistics main"):
            evaluate_checkpoint(file, val=str(images / "val"), subnets=2)
    else:  # no statistics to re-estimate
        verdict = evaluate_checkpoint(file, val=str(images / "val"), subnets=2)
        assert [report.statistics for report in verdict.subnets] == ["none"]
    export(tmp_path / "run", "timm", tmp_path / "weights.pth", which="last")
    timm.create_model(model, num_classes=3).load_state_dict(torch.load(tmp_path / "weights.pth"))
