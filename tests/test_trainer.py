"""Whole runs on small real JPEGs: what they write, that they resume exactly, and how they end."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fasttrain import build, checkpoint, loading
from fasttrain.checkpoint.archive import Archive
from fasttrain.config import Config, Model
from fasttrain.distributed import Process
from fasttrain.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from fasttrain.models import FusedBatchNorm, StagedNetwork, create_model
from fasttrain.models.fuse import SharingBottleneck
from fasttrain.recipes import recipe
from fasttrain.reevaluate import evaluate_checkpoint
from fasttrain.trainer import Summary, train

CLASSES, PER_CLASS = 3, 14


def write_images(folder: Path, count: int, seed: int) -> None:
    """JPEGs of 32x32 pixels: a class is a direction of stripes."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    for label, (across, down) in enumerate(((1, 0), (0, 1), (1, 1))):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(count):
            wave = np.sin((across * x + down * y) * random.uniform(0.4, 0.9) + random.uniform(0, 6))
            noisy = 128 + 90 * wave[..., None] + random.normal(0, 12, (32, 32, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
                folder / f"class{label}" / f"{index}.jpg"
            )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ and val/."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", PER_CLASS, 0)
    write_images(folder / "val", 5, 1)
    return folder


def configure(images: Path, folder: Path, **changes: Any) -> Config:
    """Two epochs of five steps of ST++ on the images; `changes` by section."""
    base = recipe("demo")
    sections: dict[str, dict[str, Any]] = {
        "data": {
            "train": str(images / "train"),
            "val": str(images / "val"),
            "builtin": "none",
            "num_classes": 0,
        },
        "evaluation": {"every": 1, "subnets": 5, "calibration_images": 16, "batch": 8},
        "run": {
            "epochs": 2,
            "batch": 8,
            "log_every": 2,
            "folder": str(folder),
            "name": "run",
            "device": "cpu",
        },
        "optim": {"ema": 0.5},
    }
    for name, values in changes.items():
        sections.setdefault(name, {}).update(values)
    return replace(
        base, **{name: replace(getattr(base, name), **values) for name, values in sections.items()}
    )


def metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def weights(folder: Path, name: str = "last") -> dict[str, Any]:
    return checkpoint.load(Archive(folder / "checkpoints").chosen(name))


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal to the bit, nested."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, list):
        for each in zip(ours, theirs, strict=True):
            assert_same(*each)
    else:
        assert ours == theirs


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("runs")
    return folder / "run", train(configure(images, folder))


def test_a_run_leaves_its_record(finished: tuple[Path, Summary]) -> None:
    folder, summary = finished
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.json",
        "environment.json",
        "lock",
        "log.txt",
        "metrics.jsonl",
        "status.json",
    ]
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert recipe(str(folder / "config.json")).run.epochs == 2
    steps = metrics(folder, "train")
    assert [line["global_step"] for line in steps] == [2, 4, 5, 6, 8, 10]
    for line in steps:
        assert np.isfinite([line["loss"], line["main_loss"], line["subnet_loss"]]).all()
        assert line["images_per_second"] > 0
        assert 0 <= line["data_wait"] <= 1
    assert steps[-1]["main_loss"] < steps[0]["main_loss"]
    assert summary.main is not None
    assert summary.main.images == 15
    (report,) = summary.subnets
    assert len(report.top1) == 5
    assert metrics(folder, "subnets")[0]["top1"] == report.top1
    assert not list(folder.rglob("*.tmp"))


def test_best_is_the_better_evaluation(finished: tuple[Path, Summary]) -> None:
    folder, _ = finished
    best = max(line["top1"] for line in metrics(folder, "evaluation"))
    assert weights(folder, "best")["best"] == weights(folder)["best"] == best


def test_evaluate_repeats_the_runs_own_numbers(finished: tuple[Path, Summary]) -> None:
    folder, summary = finished
    verdict = evaluate_checkpoint(
        folder / "checkpoints" / "step-00000010.pt", subnets=5, statistics="both", device="cpu"
    )
    assert verdict.main == summary.main
    assert verdict.subnets[0] == summary.subnets[0]
    assert [report.statistics for report in verdict.subnets] == ["reestimated", "main"]


@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_run_is_the_uninterrupted_one(
    images: Path, tmp_path: Path, finished: tuple[Path, Summary], stop: int
) -> None:
    """Stopped within an epoch or at its end: equal losses and equal bits of weights, momentum and average."""
    train(configure(images, tmp_path, run={"max_steps": stop}))
    train(configure(images, tmp_path))
    whole = finished[0]
    for part in ("network", "optimizer", "ema", "position"):
        assert_same(weights(tmp_path / "run")[part], weights(whole)[part])
    ours = {line["global_step"]: line["loss"] for line in metrics(tmp_path / "run", "train")}
    theirs = {line["global_step"]: line["loss"] for line in metrics(whole, "train")}
    assert ours[10] == theirs[10]
    assert len(metrics(tmp_path / "run", "train")) == len(ours)  # each step once


LAMB = {
    "name": "lamb",
    "lr": 5e-3,
    "weight_decay": 0.02,
    "decay_on": "matrices",
    "layer_decay": 0.8,
    "schedule": "cosine_to_floor",
    "schedule_unit": "epoch",
    "warmup_lr": 1e-4,
    "min_lr": 1e-4,
}


def test_a_run_with_lamb_and_bce_is_recorded_and_resumes_exactly(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the second epoch, whose learning rate stays."""
    changes: dict[str, dict[str, Any]] = {
        "optim": LAMB,
        "method": {"main_loss": "bce", "target_threshold": 0.2},
        "data": {"mixup": 0.1, "cutmix": 1.0},
    }
    train(configure(images, tmp_path / "whole", **changes))
    assert "kernels: loss reference, batch norm torch, LAMB foreach" in capsys.readouterr().out
    train(configure(images, tmp_path, **changes, run={"max_steps": 7}))
    train(configure(images, tmp_path, **changes))
    for part in ("network", "optimizer", "ema", "position"):
        assert_same(weights(tmp_path / "run")[part], weights(tmp_path / "whole" / "run")[part])
    lines = metrics(tmp_path / "run", "train")
    assert {line["global_step"]: line["lr"] for line in lines if line["global_step"] > 5} == {
        step: pytest.approx(5e-3) for step in (6, 7, 8, 10)
    }
    assert json.loads((tmp_path / "run" / "config.json").read_text())["optim"]["name"] == "lamb"
    with pytest.raises(ConfigError, match=r"optim\.name is 'adamw', was 'lamb'"):
        train(configure(images, tmp_path, **(changes | {"optim": LAMB | {"name": "adamw"}})))


def files(folder: Path) -> dict[Path, bytes]:
    """Everything under a folder, with its content; log.txt says more at every start."""
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "log.txt"
    }


def test_a_finished_run_says_so_and_is_left_alone(
    images: Path, finished: tuple[Path, Summary], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(finished[0])
    again = train(configure(images, finished[0].parent))
    assert again.main == finished[1].main
    assert "run is finished: 10 steps; nothing to do" in capsys.readouterr().out
    assert files(finished[0]) == before


def test_a_run_is_not_entered_if_told_so(
    images: Path, tmp_path: Path, finished: tuple[Path, Summary]
) -> None:
    before = files(finished[0])
    with pytest.raises(ConfigError, match=r"exists and run\.resume is 'never'; allowed: --run\.resume auto"):
        train(configure(images, finished[0].parent, run={"resume": "never"}))
    assert files(finished[0]) == before
    train(configure(images, tmp_path, run={"resume": "never", "max_steps": 1}))  # a new one is


def test_a_run_starts_from_a_given_checkpoint_once(
    images: Path, tmp_path: Path, finished: tuple[Path, Summary], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder of its own; the same command goes on there."""
    given = finished[0] / "checkpoints" / "step-00000005.pt"
    run = {"resume": str(given), "name": "other"}
    train(configure(images, tmp_path, run={**run, "max_steps": 7}))
    assert f"resumed from {given} at step 5" in capsys.readouterr().out
    train(configure(images, tmp_path, run=run))
    assert "step-00000007.pt at step 7" in capsys.readouterr().out
    assert_same(weights(tmp_path / "other")["network"], weights(finished[0])["network"])
    with pytest.raises(CheckpointError, match="no checkpoint at /nowhere"):
        train(configure(images, tmp_path, run={"resume": "/nowhere", "name": "third"}))
    assert not (tmp_path / "third").exists()


def test_a_folder_without_a_checkpoint_is_started_anew(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"kind": "train", "global_step": 1}\n')
    train(configure(images, tmp_path, run={"max_steps": 2}))
    assert [line["global_step"] for line in metrics(run, "train")] == [2]


def test_weights_alone_load_into_timm_style_networks(finished: tuple[Path, Summary]) -> None:
    """The weights that evaluation judges: here their average."""
    for name in ("best", "last"):
        path = finished[0] / "checkpoints" / f"{name}.safetensors"
        alone = create_model("cifar_resnet20", 3)
        checkpoint.load_weights(alone, path)
        assert_same(dict(alone.state_dict()), checkpoint.judged_weights(weights(finished[0], name)))


def test_the_newest_and_the_best_are_kept(finished: tuple[Path, Summary]) -> None:
    names = {path.name for path in (finished[0] / "checkpoints").iterdir()}
    steps = {f"step-{step:08}{suffix}" for step in (5, 10) for suffix in (".pt", ".json")}
    assert names == steps | {"best.pt", "best.json", "best.safetensors", "last.safetensors"}


def test_slow_steps_of_a_process_alone_are_told_and_end_nothing(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Steps that take many times `run.step_timeout`: on a CPU nobody else waits for them."""
    summary = train(configure(images, tmp_path, run={"max_steps": 3, "step_timeout": 0.01}))
    assert summary.main is not None
    assert "no step was done for 0.01 s" in capfd.readouterr().err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_a_run_folder_has_one_process(images: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is being written by another process"):
            train(configure(images, tmp_path))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"batch": 20}}, r"run\.batch is 20, was 8"),
        ({"model": {"name": "cifar_resnet32"}}, r"model\.name is 'cifar_resnet32', was 'cifar_resnet20'"),
        ({"data": {"num_classes": 5}}, r"data\.num_classes is 5, was 0"),
        ({"optim": {"ema": 0.0}}, r"optim\.ema is 0\.0, was 0\.5"),
    ],
)
def test_a_refused_resume_changes_nothing(
    images: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    train(configure(images, tmp_path, run={"max_steps": 3}))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=message):
        train(configure(images, tmp_path, **changes))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_line_that_a_crash_cut_off_does_not_stop_a_resume(images: Path, tmp_path: Path) -> None:
    train(configure(images, tmp_path, run={"max_steps": 3}))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    train(configure(images, tmp_path, run={"max_steps": 5}))
    assert [line["global_step"] for line in metrics(tmp_path / "run", "train")] == [2, 3, 4, 5]


def test_a_loss_that_is_not_finite_stops_the_run(images: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"the gradient's norm became (nan|inf) at step"):
        train(configure(images, tmp_path, optim={"lr": 1e9, "clip": 0.0}, method={"normalize": "none"}))
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def test_an_odd_batch_that_is_mixed_is_warned_of(images: Path, tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "data": {"mixup": 0.2, "val": ""},
        "run": {"batch": 7, "max_steps": 1},
    }
    train(configure(images, tmp_path, **changes))
    assert "warning: 7 images per process are mixed in pairs" in (tmp_path / "run" / "log.txt").read_text()


def test_statistics_are_reestimated_on_mixed_images(images: Path, tmp_path: Path) -> None:
    """Pairs of neighbours are mixed: each pair keeps its mean."""
    batches = []
    for mixup in (0.0, 1.0):
        config = configure(images, tmp_path, data={"mixup": mixup})
        folder = loading.open_folders(config).train
        process = Process(0, 1, torch.device("cpu"))
        batches.append(next(loading.calibration_batches(config, folder, process, torch.float32, 3)))
    plain, mixed = (batch.unflatten(0, (4, 2)) for batch in batches)
    torch.testing.assert_close(mixed.mean(1), plain.mean(1))
    assert not torch.equal(mixed, plain)


def test_published_options_run(images: Path, tmp_path: Path) -> None:
    """Cascaded inputs of every size, partial last batch, re-estimated statistics, common training's tree."""
    changes: dict[str, dict[str, Any]] = {
        "data": {"drop_last": False, "published_lighting": True, "lighting": 0.1},
        "method": {"subnet_inputs": "cascaded", "sizes": tuple(range(13, 33))},
        "evaluation": {"reestimate": True, "subnets": 0},
        "run": {"epochs": 1},
        "optim": {"ema": 0.0},
    }
    summary = train(configure(images, tmp_path, **changes))
    assert [line["global_step"] for line in metrics(tmp_path / "run", "train")] == [2, 4, 6]  # 42 images by 8
    assert summary.main is not None
    assert summary.subnets == []


@pytest.mark.parametrize(
    "method",
    [
        {"subnet_inputs": "downscaled", "sizes": (16, 24), "sizes_per_step": 3},
        {
            "subnet_inputs": "full",
            "sizes": (),
            "draws": "coupled",
            "normalize": "l2",
            "normalize_main": False,
        },
        {"subnet_inputs": "full", "sizes": (), "sampling": "stochastic", "supervision": "ce_teacher"},
        {"subnet_inputs": "full", "sizes": (), "sampling": "raw", "supervision": "ce_target"},
    ],
)
def test_every_way_of_drawing_subnets_trains(images: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    changes = {"method": method, "run": {"epochs": 1, "max_steps": 2}, "data": {"val": ""}}
    summary = train(configure(images, tmp_path, **changes))
    assert summary.main is None
    assert np.isfinite(metrics(tmp_path / "run", "train")[-1]["loss"])


def test_bad_data_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for data, message in (
        ({"train": str(tmp_path / "none")}, "none"),
        ({"train": str(tmp_path / "empty")}, "empty"),
        ({"val": str(tmp_path / "none")}, "none"),
    ):
        with pytest.raises(DataError, match=message):
            train(configure(images, tmp_path / "runs", data=data))
    for changes, message in (
        ({"data": {"train": ""}}, r"data\.train is empty"),
        ({"data": {"num_classes": 2}}, r"data\.num_classes is 2; allowed: 0 or at least the 3"),
        ({"run": {"batch": 64}}, r"run\.batch is 64"),
        ({"model": {"name": "resnet18"}}, "allowed: at least 32 pixels"),
        ({"method": {"space": "space3"}}, "space3"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(configure(images, tmp_path / "runs", **changes))
    assert not (tmp_path / "runs").exists()


def test_an_undecodable_image_is_named(images: Path, tmp_path: Path) -> None:
    broken = tmp_path / "train"
    write_images(broken, 6, 3)
    victim = broken / "class1" / "3.jpg"
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(DataError, match=str(victim)):
        train(configure(images, tmp_path / "runs", data={"train": str(broken)}))


def test_evaluation_of_other_classes_is_refused(tmp_path: Path, finished: tuple[Path, Summary]) -> None:
    other = tmp_path / "other"
    write_images(other / "train", 4, 0)
    (other / "train" / "class2").rename(other / "train" / "class9")
    with pytest.raises(DataError, match="class"):
        evaluate_checkpoint(finished[0] / "checkpoints" / "best.pt", train=str(other / "train"), device="cpu")


def test_a_resume_on_a_data_set_that_changed_is_refused(images: Path, tmp_path: Path) -> None:
    train(configure(images, tmp_path, run={"max_steps": 3}))
    write_images(tmp_path / "fewer", 6, 0)
    changes = {"data": {"train": str(tmp_path / "fewer")}}
    with pytest.raises(CheckpointError, match="cannot go on in the data: images is"):
        train(configure(images, tmp_path, **changes))


def test_kernels_train_as_plain_pytorch_does(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps with fused operations (by the interpreter on a CPU), chosen by configuration and logged."""
    losses = []
    for name, kernels, batch_norm in (("plain", "reference", "torch"), ("fused", "triton", "triton")):
        sections = {
            "run": {
                "name": name,
                "kernels": kernels,
                "max_steps": 2,
                "log_every": 1,
                "precision": "fp32",
            },
            "model": {"batch_norm": batch_norm},
            "method": {"sizes": (8, 16)},
            "evaluation": {"subnets": 0},
            "data": {"val": "", "crop": 16},
        }
        train(configure(images, tmp_path, **sections))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([line["loss"] for line in map(json.loads, lines) if "loss" in line])
    assert losses[1][:2] == pytest.approx(losses[0][:2], rel=1e-4)
    out = capsys.readouterr().out
    assert "kernels: loss reference, batch norm torch, SGD foreach" in out
    assert "kernels: loss triton, batch norm triton (19 of 19 fused), SGD foreach" in out


def test_fused_convolutions_train_as_plain_pytorch_does(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of bottlenecks; the choice is logged, free on resume, and no matter to a later evaluation."""
    losses = []
    for name, conv1x1 in (("plain", "torch"), ("fused", "reference")):
        sections: dict[str, Any] = {
            "run": {"name": name, "max_steps": 2, "log_every": 1, "batch": 4, "precision": "fp32"},
            "model": {"name": "resnet26", "batch_norm": "reference", "conv1x1": conv1x1},
            "method": {"name": "common", "subnet_inputs": "full", "sizes": (), "sizes_per_step": 1},
            "evaluation": {"subnets": 0},
        }
        train(configure(images, tmp_path, **sections))
        losses.append([line["loss"] for line in metrics(tmp_path / name, "train")])
    # the last batch norm sees 4 values per channel, which blows rounding up from the second step on
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert "(29 of 29 fused), 1x1 convolutions reference, SGD" in capsys.readouterr().out
    sections["model"]["conv1x1"] = "torch"
    sections["run"] |= {"max_steps": 3}
    train(configure(images, tmp_path, **sections))
    assert evaluate_checkpoint(tmp_path / "fused" / "checkpoints" / "best.pt", subnets=0, device="cpu").main


def network(name: str, **model: Any) -> StagedNetwork:
    config = Config(model=Model(name=name, **model))
    return build.build_network(config, 5, torch.device("cpu"))


@pytest.mark.parametrize("batch_norm", ["triton", "reference"])
def test_batch_norms_that_cannot_be_fused_are_torchs_or_an_error(
    batch_norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "mobilenetv3_small_050"
    with pytest.raises(
        ConfigError, match=rf"model.batch_norm is '{batch_norm}'; allowed for {name}, .*torch"
    ):
        network(name, batch_norm=batch_norm)
    monkeypatch.setattr(build, "choose_batch_norm", lambda *_: batch_norm)  # what auto chooses on a GPU
    assert not any(isinstance(module, FusedBatchNorm) for module in network(name).modules())


def test_a_mobilenet_trains_and_is_evaluated(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "choose_batch_norm", lambda *_: "reference")  # as auto on a GPU chooses triton
    changes = {
        "model": {"name": "mobilenetv3_small_050"},
        "method": {"subnet_inputs": "full", "sizes": (), "sizes_per_step": 1, "sampling": "raw"},
        "run": {"epochs": 1, "max_steps": 2},
        "evaluation": {"subnets": 3},
    }
    summary = train(configure(images, tmp_path, **changes))
    assert np.isfinite(metrics(tmp_path / "run", "train")[-1]["loss"])
    assert len(summary.subnets[0].top1) == 3
    assert "batch norm torch, SGD" in capsys.readouterr().out


def test_the_configuration_fuses_convolutions() -> None:
    reference: dict[str, Any] = {"batch_norm": "reference", "conv1x1": "reference"}
    assert any(isinstance(module, SharingBottleneck) for module in network("resnet50", **reference).modules())
    plain = network("resnet50", batch_norm="reference")
    assert not any(isinstance(module, SharingBottleneck) for module in plain.modules())
    with pytest.raises(ConfigError, match=r"model.conv1x1 is 'reference'; .* resnet18, which has no plain"):
        network("resnet18", **reference)
    with pytest.raises(ConfigError, match=r"model.conv1x1 is 'triton'; allowed with batch norm torch: torch"):
        network("resnet50", conv1x1="triton", batch_norm="torch")


def test_the_clock_saves_within_an_epoch(images: Path, tmp_path: Path) -> None:
    """After a tiny part of a minute, unless 0 turns the clock off."""
    kept = {}
    for minutes in (1e-9, 0.0):
        name = f"after-{minutes}"
        run = {"epochs": 1, "max_steps": 4, "keep": 50, "name": name, "save_minutes": minutes}
        changes = {"evaluation": {"subnets": 0}, "data": {"val": ""}, "run": run}
        train(configure(images, tmp_path, **changes))
        kept[minutes] = {path.stem for path in (tmp_path / name / "checkpoints").glob("step-*.pt")}
    assert kept[0.0] == {"step-00000004"}
    assert kept[1e-9] > kept[0.0]
