"""`fasttrain export` and `evaluate` on runs, checkpoints and files of weights, and on what is none."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from fasttrain import checkpoint
from fasttrain.checkpoint.archive import Archive
from fasttrain.cli import main
from fasttrain.compat.weights import to_form
from fasttrain.config import IMAGENET_MEAN, IMAGENET_STD, Config, to_dict
from fasttrain.models import create_model
from fasttrain.recipes import recipe
from fasttrain.reevaluate import evaluate_checkpoint
from fasttrain.trained import metadata, open_trained
from tests.test_trainer import CLASSES, configure, write_images

NAMES = [f"class{label}" for label in range(CLASSES)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ and val/, of three classes."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 8, 0)
    write_images(folder / "val", 5, 1)
    return folder


def pixels(folder: Path) -> torch.Tensor:
    """A folder's images as the network sees them, [N, 3, 32, 32]."""
    paths = sorted(folder.rglob("*.jpg"))
    images = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])
    mean, std = (torch.tensor(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2)


def write_run(config: Config) -> Path:
    """A run's folder with one checkpoint, of a network that has statistics and favours no class."""
    torch.manual_seed(3)
    network, seen = create_model(config.model.name, CLASSES).train(), pixels(Path(config.data.val))
    with torch.no_grad():
        for _ in range(20):
            network(seen)
        network.fc.weight.normal_()  # type: ignore[operator, union-attr]
        network.fc.bias -= network.eval()(seen).mean(0)  # type: ignore[union-attr]
    state: dict[str, Any] = {name: kind() for name, kind in checkpoint.CONTENTS.items()} | {
        "config": to_dict(config),
        "classes": NAMES,
        "position": {"epoch": 2, "step": 0, "global_step": 10},
        "network": network.state_dict(),
        "evaluated": 10,
        "main": {"top1": 61.5, "top5": 100.0, "loss": 1.0, "images": 15},
    }
    folder = Path(config.run.folder) / config.run.name
    (folder / "checkpoints").mkdir(parents=True)
    Archive(folder / "checkpoints").save(10, state, {}, best=True)
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder."""
    return write_run(configure(images, tmp_path_factory.mktemp("runs"), run={"precision": "fp32"}))


def command(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one command in this process."""
    status = 0
    try:
        main([str(word) for word in words])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_whole_network_carries_what_is_known_of_it(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    status, out, err = command(capsys, "export", run, "--format", "safetensors", "-o", path)
    assert (status, err) == (0, "")
    assert out == (
        f"{path}: cifar_resnet20, 3,3,3 blocks, 3 classes, batch-norm statistics main, Top-1 61.500 %\n"
    )
    ours, again = open_trained(run), open_trained(path)
    assert (again.step, again.epoch, again.top1, again.classes) == (10, 2, 61.5, tuple(NAMES))
    assert again.config.method == ours.config.method
    assert str(run) not in json.dumps(to_dict(again.config))
    assert again.config.data.train == ""
    for name, tensor in ours.weights.items():
        assert torch.equal(again.weights[name], tensor)


def test_a_bare_subnet_has_its_own_statistics_and_accuracy(
    capsys: pytest.CaptureFixture[str], run: Path, images: Path, tmp_path: Path
) -> None:
    """Those that the walk over all subnets gives it; evaluated again from the file, too."""
    verdict = evaluate_checkpoint(run, device="cpu", statistics="both")
    own, borrowed = (dict(zip(each.depths, each.top1, strict=True)) for each in verdict.subnets)
    val = ("--val", images / "val", "--device", "cpu")
    for statistics, expected in (("auto", own), ("reestimated", own), ("main", borrowed)):
        path = tmp_path / f"{statistics}.safetensors"
        words = ("--format", "safetensors", "-o", path, "--subnet", "2,1,3", "--statistics", statistics)
        status, out, err = command(capsys, "export", run, *words, *val)
        assert (status, err) == (0, "")
        assert f"Top-1 {expected[2, 1, 3]:.3f} %" in out
        status, out, err = command(capsys, "evaluate", path, "--subnets", "0", *val)
        assert (status, err) == (0, "")
        assert f"Top-1 {expected[2, 1, 3]:.3f} %" in out
    trained = open_trained(tmp_path / "auto.safetensors")
    assert (trained.depths, trained.statistics) == ((2, 1, 3), "reestimated")
    assert trained.network().depths == (2, 1, 3)
    assert own[2, 1, 3] != borrowed[2, 1, 3]


def test_without_training_images_a_subnet_has_the_whole_networks_statistics_and_a_warning(
    capsys: pytest.CaptureFixture[str], images: Path, tmp_path: Path
) -> None:
    config = configure(images, tmp_path, data={"train": str(tmp_path / "gone")})
    run, path = write_run(config), tmp_path / "x.safetensors"
    words = ("export", run, "--format", "safetensors", "-o", path, "--subnet", "1,1,1")
    status, out, _ = command(capsys, *words)
    assert status == 0
    assert out.startswith("warning: no training images at hand")
    assert "statistics main" in out
    whole = open_trained(run).weights
    for name, tensor in open_trained(path).weights.items():
        assert torch.equal(tensor, whole[name])
    status, _, err = command(capsys, *words, "--statistics", "reestimated", "--force")
    assert (status, len(err.splitlines())) == (3, 1)
    assert "gone" in err


def test_the_statistics_are_the_subnets_own_in_timms_network(
    capsys: pytest.CaptureFixture[str], images: Path, tmp_path: Path
) -> None:
    """A bare subnet of ResNet-18 by timm's names, in timm: the logits of the subnet with its statistics."""
    batch = 64  # more than there are images: they are one batch
    config = configure(
        images, tmp_path, model={"name": "resnet18"}, run={"precision": "fp32", "batch": batch}
    )
    run = write_run(config)
    for form, name in (("timm", "x.pth"), ("safetensors", "x.safetensors")):
        path = tmp_path / name
        words = ("--format", form, "-o", path, "--subnet", "1,2,1,1", "--device", "cpu")
        status, _, err = command(capsys, "export", run, *words)
        assert (status, err) == (0, "")
    expected = open_trained(tmp_path / "x.safetensors").network()
    assert not torch.equal(expected.bn1.running_mean, open_trained(run).weights["bn1.running_mean"])  # type: ignore[arg-type, union-attr]
    theirs = timm.create_model("resnet18", layers=(1, 2, 1, 1), num_classes=CLASSES).eval()
    x = torch.randn(2, 3, 64, 64)
    theirs.load_state_dict(torch.load(tmp_path / "x.pth"))
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), expected(x))


@pytest.fixture(scope="module")
def published(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of the published code's names, and a config.json that it fits."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    network = create_model("resnet50", CLASSES)
    torch.save({"epoch": 199, "state_dict": to_form(network, "published")}, folder / "model_best.pth.tar")
    config = recipe("rn50-stpp-a1")
    data = replace(config.data, val_resize=32, val_crop=32, crop=64)
    config = replace(config, data=data, method=replace(config.method, sizes=(32, 64)))
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder / "model_best.pth.tar", folder / "config.json"


def test_published_checkpoints_are_evaluated_and_exported_by_a_recipe(
    capsys: pytest.CaptureFixture[str], published: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    path, config = published
    words = (path, "--recipe", config, "--device", "cpu")
    data = ("--val", images / "val", "--train", images / "train")
    status, out, err = command(capsys, "evaluate", *words, *data, "--subnets", "1")
    assert (status, err) == (0, "")
    assert "15 images\n1 subnets with their own batch-norm statistics" in out
    status, _, err = command(capsys, "export", *words, "--format", "timm", "-o", tmp_path / "x.pth")
    assert (status, err) == (0, "")
    theirs = timm.create_model("resnet50", num_classes=CLASSES)
    theirs.load_state_dict(torch.load(tmp_path / "x.pth"))
    exported = theirs.state_dict()
    for name, tensor in open_trained(path, recipe_name=str(config)).weights.items():
        assert torch.equal(exported[name], tensor)


def test_onnx_by_the_command_line(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    words = ("--format", "onnx", "-o", path, "--subnet", "1,2,1", "--device", "cpu")
    status, out, err = command(capsys, "export", run, *words)
    assert (status, err) == (0, "")
    assert "ONNX opset 18" in out.splitlines()[-1]
    import onnx

    model = onnx.load(path)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert (told["depths"], told["statistics"], told["step"]) == ("1,2,1", "reestimated", "10")
    assert [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim] == [0, 3, 32, 32]


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (
            "RUN --format onnx -o TMP/x.pt",
            2,
            "-o is TMP/x.pt; allowed for this format: a file ending in .onnx",
        ),
        ("RUN --format timm -o TMP/none/x.pt", 2, "-o is TMP/none/x.pt; allowed: a file in a folder that"),
        (
            "RUN --format safetensors -o /proc/x.safetensors",
            2,
            "-o is /proc/x.safetensors: cannot write to /",
        ),
        ("RUN --format safetensors -o TMP/here.safetensors", 2, "which exists; allowed: another file, or"),
        ("RUN --format timm -o TMP/x.pt", 2, "--format is timm for cifar_resnet20"),
        (
            "RUN --format safetensors -o TMP/x.safetensors --subnet 3,3,4",
            2,
            "--subnet is 3,3,4; allowed: 1 to",
        ),
        (
            "RUN --format safetensors -o TMP/x.safetensors --subnet 3,3",
            2,
            "--subnet is 3,3; allowed: 1 to 3,3,3",
        ),
        ("RUN --format safetensors -o TMP/x.safetensors --subnet 3,0,1", 2, "--subnet is 3,0,1; allowed"),
        ("RUN --format safetensors -o TMP/x.safetensors --subnet all", 2, "--subnet is all; allowed: blocks"),
        (f"RUN --format safetensors -o TMP/x.safetensors --subnet {'9' * 5000}", 2, "--subnet is 9999"),
        ("RUN --format safetensors -o TMP/pipe.safetensors --force", 2, "allowed: a file in a folder"),
        (f"{'x' * 5000} --format onnx -o TMP/x.onnx", 4, "no checkpoint in xxx"),
        *(
            (f"TMP/{name} --format safetensors -o TMP/x.safetensors --recipe demo", 4, told)
            for name, told in (
                ("form.pt", "form.pt is of another architecture"),
                ("average.pt", "average.pt holds no weights, which are tensors by their names; it has: net"),
                ("nan.pt", "nan.pt holds NaN or infinite values in fc.bias; allowed: finite weights"),
                ("empty_head.pt", "has 0 outputs; allowed: 1 to 1000000"),
                ("endless_head.pt", "has 1000000000000 outputs; allowed: 1 to 1000000"),
                ("old_pickle.pt", "old_pickle.pt"),
            )
        ),
        *(
            (f"TMP/{name}.safetensors --format onnx -o TMP/x.onnx", 4, told)
            for name, told in (
                ("config", "does not fit this run: it lacks 'config'"),
                ("classes", "its classes are {}; allowed: a list of different names"),
                ("statistics", "its statistics are 'x'; allowed: main, reestimated"),
                ("top1", "its top1 is nan; allowed: percent"),
                ("step", "its step is -1; allowed: 0 or more"),
            )
        ),
        ("RUN --format onnx -o TMP/x.onnx --side 9999", 2, "--side is 9999; allowed: 0 to 4096"),
        ("RUN --format safetensors -o TMP/x.safetensors --recipe demo", 2, "--recipe is demo; allowed: none"),
        (
            "RUN --format safetensors -o TMP/x.safetensors --train /nowhere --subnet 1,1,1",
            3,
            "'/nowhere' does",
        ),
        ("RUN --format safetensors -o TMP/x.safetensors --val TMP/other", 4, "was trained on other classes"),
        ("WEIGHTS --format timm -o TMP/x.pt", 2, "allowed: the recipe or config.json that it fits"),
        ("WEIGHTS --format timm -o TMP/x.pt --recipe nix", 2, "unknown recipe 'nix'"),
        (
            "WEIGHTS --format timm -o TMP/x.pt --recipe demo",
            4,
            "model_best.pth.tar is of another architecture",
        ),
        ("TMP/none --format onnx -o TMP/x.onnx", 4, "no checkpoint in TMP/none/checkpoints"),
        ("TMP/truncated.pt --format onnx -o TMP/x.onnx", 4, "TMP/truncated.pt"),
        ("TMP/text.pt --format onnx -o TMP/x.onnx", 4, "TMP/text.pt"),
        ("TMP/evil.pt --format onnx -o TMP/x.onnx", 4, "holds more than tensors and plain values"),
        ("TMP/pickle.pt --format onnx -o TMP/x.onnx", 4, "TMP/pickle.pt"),
    ],
)
def test_mistakes_are_one_message_and_nothing_is_run_or_written(
    capsys: pytest.CaptureFixture[str],
    run: Path,
    published: tuple[Path, Path],
    tmp_path: Path,
    words: str,
    status: int,
    told: str,
) -> None:
    places = {"RUN": str(run), "WEIGHTS": str(published[0]), "TMP": str(tmp_path)}
    write_bad_files(tmp_path, run)
    before = sorted(tmp_path.rglob("*"))
    for short, path in places.items():
        words, told = words.replace(short, path), told.replace(short, path)
    got, out, err = command(capsys, "export", *words.split())
    assert (got, out) == (status, "")
    assert told in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.canary),))


def write_bad_files(folder: Path, run: Path) -> None:
    """Files that are no checkpoints, and a folder of images of other classes."""
    (folder / "here.safetensors").touch()
    os.mkfifo(folder / "pipe.safetensors")
    write_odd_weights(folder, run)
    (folder / "text.pt").write_text("no checkpoint at all")
    (folder / "truncated.pt").write_bytes((run / "checkpoints" / "best.pt").read_bytes()[:5000])
    weights = {"state_dict": Evil(folder / "canary"), "format": checkpoint.FORMAT}
    torch.save(weights, folder / "evil.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps(weights))
    for name in ("cat", "dog", "owl"):
        (folder / "other" / name).mkdir(parents=True)
        (folder / "other" / name / "0.jpg").touch()


def write_odd_weights(folder: Path, run: Path) -> None:
    """Files of weights with one thing wrong in each."""
    weights = open_trained(run).weights
    bias, weight = weights["fc.bias"], weights["fc.weight"]
    heads = {
        "nan": (bias * torch.nan, weight),
        "empty_head": (bias[:0], weight[:0]),
        "endless_head": (bias[:1].expand(10**12), weight[:1].expand(10**12, -1)),
    }
    for name, (own, theirs) in heads.items():
        torch.save(weights | {"fc.bias": own, "fc.weight": theirs}, folder / f"{name}.pt")
    torch.save({"format": torch.zeros(2)}, folder / "form.pt")
    torch.save({"network": 5, "ema": 5}, folder / "average.pt")
    (folder / "old_pickle.pt").write_bytes(pickle.dumps(Evil(folder / "canary"), protocol=4))
    good = metadata(open_trained(run))
    for name, value in {
        "config": None,
        "classes": "{}",
        "statistics": "x",
        "top1": "nan",
        "step": "-1",
    }.items():
        about = {key: each for key, each in good.items() if key != name}
        about |= {} if value is None else {name: value}
        save_file(weights, folder / f"{name}.safetensors", about)


@pytest.mark.parametrize("name", ["evil.pt", "pickle.pt", "truncated.pt", "text.pt"])
@pytest.mark.parametrize("reader", ["evaluate", "train"])
def test_no_other_reader_takes_them_either(
    capsys: pytest.CaptureFixture[str], run: Path, images: Path, tmp_path: Path, name: str, reader: str
) -> None:
    write_bad_files(tmp_path, run)
    data = ("--data.train", images / "train", "--data.val", images / "val", "--data.num-classes", "0")
    train = ("demo", *data, "--run.folder", tmp_path, "--model.weights")
    before = sorted(tmp_path.rglob("*"))
    words = (reader,) if reader == "evaluate" else (reader, *train)
    status, _, err = command(capsys, *words, tmp_path / name)
    assert status == 4
    assert name in err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_classes_of_unknown_names_are_counted(
    capsys: pytest.CaptureFixture[str], published: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:
    path, config = published
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0.jpg").touch()
    words = (path, "--recipe", config, "--val", tmp_path, "--subnets", "0")
    status, _, err = command(capsys, "evaluate", *words)
    assert status == 4
    assert f"has 3 outputs, {tmp_path} holds 1 classes" in err


@pytest.mark.parametrize(
    "option", ["evaluate --output", "report -o", "export --format safetensors --force -o"]
)
@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/best.json", "checkpoints/best.safetensors"])
def test_nothing_is_written_over_a_runs_own_files(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, option: str, name: str
) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    for missing in ("config.json", "metrics.jsonl"):
        (run / missing).write_text("{}")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    reader, *words = option.split()
    status, _, err = command(capsys, reader, run, *words, run / name)
    assert status == 2
    assert "a run's own file; allowed: another file" in err or "allowed for this format" in err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["folder", "pipe", "/proc/x"])
def test_where_to_write_a_verdict_is_looked_at_first(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    status, out, err = command(capsys, "evaluate", run, "--output", tmp_path / name)
    assert (status, out) == (2, "")
    assert f"--output is {tmp_path / name}" in err
