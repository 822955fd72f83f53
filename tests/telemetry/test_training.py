"""What whole runs leave behind."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fasttrain import flops
from fasttrain.config import Config
from fasttrain.errors import ConfigError
from fasttrain.methods import Pass
from fasttrain.subnets import PrefixTree
from fasttrain.telemetry.folder import RunFolder
from fasttrain.telemetry.reporter import Reporter
from fasttrain.trainer import train

from ..test_trainer import configure, metrics, write_images

CANARY = "canary-1618033988"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps of 8 images, no validation images."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 14, 0)
    return folder


def plain(images: Path, folder: Path, **run: Any) -> Config:
    """Two epochs without evaluation."""
    return configure(images, folder, data={"val": ""}, run=run)


def test_a_run_tells_all_and_no_secret(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("MY_PASSWORD", CANARY)
    train(plain(images, tmp_path, profile="1:3"))
    folder = tmp_path / "run"
    records = metrics(folder, "train")
    told = {
        *("kind", "epoch", "step", "global_step", "time", "loss", "loss_max", "main_loss", "subnet_loss"),
        *("train_top1", "gradient_norm", "lr", "images_per_second", "images_per_second_per_process"),
        *("step_ms", "step_ms_p50", "step_ms_p95", "data_wait", "flops_per_image", "mfu", "eta_seconds"),
    }
    assert all(told <= record.keys() for record in records)
    network = flops.meta_network("cifar_resnet20", 3)
    plainly = flops.passes_flops(network, [Pass(1, 32, PrefixTree([network.full]))])
    for record in records:
        assert plainly < record["flops_per_image"] < 3 * plainly
        assert record["mfu"] is None  # of a CPU nobody knows what it could
        assert record["gradient_norm"] > 0
        assert record["step_ms_p50"] <= record["step_ms_p95"]
    assert records[-1]["eta_seconds"] == 0
    assert [path.name for path in (folder / "trace").iterdir()] == ["steps-1-3.json.gz"]
    assert "nvml" in json.loads((folder / "environment.json").read_text())
    out, err = capfd.readouterr()
    assert "trace of steps 1 to 2" in out
    assert "ETA" in out
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert all(CANARY.encode() not in text for text in [out.encode(), err.encode(), *written])


def test_a_resume_tells_each_step_once(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 27 of the matrix: a checkpoint after step 5, a crash after step 8, the rest anew."""
    config = plain(images, tmp_path, log_every=1)
    tell = Reporter.train

    def crash(self: Reporter, position: Any, metrics: Any) -> None:
        tell(self, position, metrics)
        if position["global_step"] == 8:
            raise RuntimeError("crash")

    monkeypatch.setattr(Reporter, "train", crash)
    with pytest.raises(RuntimeError, match="crash"):
        train(config)
    monkeypatch.setattr(Reporter, "train", tell)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "glob')  # what a kill leaves
    train(replace(config, run=replace(config.run, resume="auto")))
    assert [record["global_step"] for record in metrics(tmp_path / "run", "train")] == list(range(1, 11))


def test_a_missing_package_is_found_before_anything_is_written(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest)
    )
    with pytest.raises(ConfigError, match="wandb"):
        train(plain(images, tmp_path, wandb="mine"))
    assert list(tmp_path.iterdir()) == []


def test_utilisation_of_a_known_gpu_and_a_sink_that_fails(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MFU is the FLOPs that ran, per second and process, over what could be; a failing sink is left out."""

    class Broken:
        calls = 0

        def write(self, values: Any, step: int) -> None:
            self.calls += 1
            raise ValueError("no network")

        def close(self, state: str) -> None:
            raise AssertionError("it was left out")

    broken, announce = Broken(), Reporter.announce

    def equip(self: Reporter) -> None:
        self.peak = 1e12
        self.sinks.append(broken)
        announce(self)

    monkeypatch.setattr(Reporter, "announce", equip)
    train(plain(images, tmp_path, max_steps=4))
    first, second = metrics(tmp_path / "run", "train")
    for record in (first, second):
        rate = record["flops_per_image"] * record["images_per_second_per_process"]
        assert record["mfu"] == pytest.approx(rate / 1e12)
    assert broken.calls == 1
    assert "warning: Broken: ValueError: no network" in capsys.readouterr().out


def test_what_is_not_finite_is_null(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = Reporter.train

    def overflow(self: Reporter, position: Any, metrics: Any) -> None:
        tell(self, position, metrics | {"gradient_norm": float("nan")})

    monkeypatch.setattr(Reporter, "train", overflow)
    train(plain(images, tmp_path, max_steps=2))
    (record,) = metrics(tmp_path / "run", "train")
    assert record["gradient_norm"] is None


def test_a_full_disk_costs_records_and_no_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def fail(self: RunFolder, kind: str, **values: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "record", fail)
    train(plain(images, tmp_path, max_steps=2))
    assert "warning: metrics.jsonl lacks a record: [Errno 28]" in capsys.readouterr().out
