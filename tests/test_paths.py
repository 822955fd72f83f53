"""Paths as users give them: relative to another folder, with `~`, moved, or in bytes that are no UTF-8."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from fasttrain.config import Config, Data, Model, Run, absolute, from_dict, to_dict, with_paths
from fasttrain.errors import DataError
from fasttrain.pipelines.manifest import read_manifest
from fasttrain.recipes import RECIPES, recipe
from tests.test_cli import run
from tests.test_trainer import write_images

ODD = os.fsdecode(b"caf\xe9")
"""A Latin-1 name, as on old disks."""

TINY = (
    *("cifar10-resnet56-ct", "--model.name", "cifar_resnet20", "--data.num-classes", "0"),
    *("--data.threads", "1", "--run.batch", "4", "--run.log-every", "1", "--optim.lr", "0.01"),
    *("--run.epochs", "1", "--optim.warmup-epochs", "0", "--evaluation.subnets", "0", "--run.device", "cpu"),
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with six images in data/; `elsewhere` lies beside."""
    for name in ("here", "elsewhere", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_images(tmp_path / "here" / "data", 3, 0)
    return tmp_path / "here"


def train(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status, out, err = run(capsys, "train", *words)
    assert status == 0, err
    return out


def step_of(folder: Path) -> int:
    return int(json.loads((folder / "status.json").read_text())["global_step"])


def test_a_run_is_found_from_another_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on where it lies; evaluation, analysis and export find its images."""
    paths = ("--data.train", "data", "--data.val", "data")
    train(capsys, *TINY, *paths, "--run.name", "one", "--run.max-steps", "1")
    kept = json.loads((here / "runs/one/config.json").read_text())
    assert kept["run"]["folder"] == str(here / "runs")
    assert kept["data"]["train"] == kept["data"]["val"] == str(here / "data")

    monkeypatch.chdir(here.parent / "elsewhere")
    out = train(capsys, "../here/runs/one/config.json", "--run.max-steps", "2")
    assert "at step 1" in out
    assert "step 2" in out
    assert "lay in" not in out
    assert list(Path().iterdir()) == []
    assert step_of(here / "runs/one") == 2
    for words in (
        ("evaluate", "../here/runs/one", "--subnets", "2"),
        ("analyze", "layers", "../here/runs/one", "--subnets", "2"),
        ("export", "../here/runs/one", "--format", "safetensors", "-o", "x.safetensors", "--subnet", "1,1,1"),
        ("report", "../here/runs/one"),
        ("check", "../here/runs/one/config.json"),
    ):
        status, out, err = run(capsys, *words)
        assert status == 0, err
        assert "no training images at hand" not in out


def test_a_run_that_was_moved_goes_on_where_it_lies(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says so; the one that it was copied from is left alone."""
    train(capsys, *TINY, "--data.train", "data", "--run.name", "one", "--run.max-steps", "1")
    copied = here.parent / "elsewhere" / "two"
    shutil.copytree(here / "runs/one", copied)
    monkeypatch.chdir(here.parent)
    out = train(capsys, "elsewhere/two/config.json", "--run.max-steps", "2")
    assert f"the run lay in {here}/runs/one before; it goes on in {copied}" in out
    assert (step_of(copied), step_of(here / "runs/one")) == (2, 1)
    assert json.loads((copied / "config.json").read_text())["run"]["name"] == "two"
    assert "lay in" not in train(capsys, "elsewhere/two/config.json", "--run.max-steps", "3")


def test_another_name_makes_another_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(capsys, *TINY, "--data.train", "data", "--run.name", "one", "--run.max-steps", "1")
    train(capsys, "runs/one/config.json", "--run.name", "two")
    assert step_of(here / "runs/two") == 1


def test_a_configuration_that_is_no_runs_keeps_its_folder(here: Path) -> None:
    for name in ("config.json", "mine.json"):
        (here / name).write_text(json.dumps(to_dict(recipe("demo"))))
        assert recipe(name).run.folder == "runs"


def test_recipes_hold_no_absolute_paths() -> None:
    for name in RECIPES:
        config = recipe(name)
        assert not os.path.isabs(config.run.folder + config.data.train + config.data.val)


def test_all_paths_of_a_configuration_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = Config(
        data=Data(train="a", val="b/../c"), model=Model(weights="w.pt"), run=Run(resume="r.pt", name="n")
    )
    whole = absolute(given)
    assert (whole.data.train, whole.data.val) == (f"{tmp_path}/a", f"{tmp_path}/c")
    assert (whole.model.weights, whole.run.resume) == (f"{tmp_path}/w.pt", f"{tmp_path}/r.pt")
    assert (whole.run.folder, whole.run.name) == (f"{tmp_path}/runs", "n")
    assert absolute(whole) == whole
    nothing = absolute(Config(data=Data(train="s3://bucket/x"), run=Run(folder="")))
    assert nothing.data == Data(train="s3://bucket/x")
    assert (nothing.run.folder, nothing.run.resume, nothing.model.weights) == ("", "auto", "")


def test_each_path_of_a_configuration_is_changed() -> None:
    """A new field that holds a path belongs here too."""
    named = {
        "data": {"train": "1", "val": "2"},
        "model": {"weights": "3"},
        "run": {"folder": "4", "resume": "5"},
    }
    changed = to_dict(with_paths(from_dict(named), lambda path: f"/{path}"))
    for section, values in named.items():
        assert {field: changed[section][field] for field in values} == {k: f"/{v}" for k, v in values.items()}


def test_a_tilde_is_the_home_folder_in_options_and_files(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = here.parent / "home"
    shutil.copytree("data", home / "data")
    out = train(
        capsys, *TINY, "--data.train=~/data", "--run.folder=~/runs", "--run.name=x", "--run.max-steps=1"
    )
    assert "9 training images" in out
    assert step_of(home / "runs/x") == 1
    values = json.loads((home / "runs/x/config.json").read_text())
    assert values["data"]["train"] == str(home / "data")
    values["data"]["train"], values["run"] = "~/data", {**values["run"], "folder": "~/others", "name": "y"}
    (home / "mine.json").write_text(json.dumps(values))
    train(capsys, "~/mine.json")
    assert step_of(home / "others/y") == 1
    for words in (
        ("data", "check", "~/data", "--output=~/m.jsonl"),
        ("data", "pack", "~/m.jsonl", "--shards=1", "--output=~/packed"),
        ("evaluate", "~/runs/x", "--val=~/data", "--subnets=0", "--output=~/v.json"),
        ("export", "~/runs/x", "--format=safetensors", "--output=~/x.safetensors"),
        ("report", "~/runs/x", "--output=~/r.html"),
        ("runs", "~/runs"),
        ("watch", "~/runs/x", "--once"),
        ("check", *TINY, "--data.train=~/data", "--data.val=~/data", "--run.folder=~/runs"),
    ):
        status, _, err = run(capsys, *words)
        assert status == 0, (words, err)
    made = ("m.jsonl", "packed", "v.json", "x.safetensors", "r.html")
    assert all((home / name).exists() for name in made)
    _, out, _ = run(capsys, "nips22", "--exp=~/n", "--data=~/data", "--print-command")
    assert f"--data.train {home}/data/train" in out
    assert sorted(os.listdir()) == ["data"]


def test_a_run_in_a_folder_that_is_no_utf8_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its images lie in such a folder too, and a class has such a name."""
    Path(ODD).mkdir()
    shutil.move("data", f"{ODD}/data")
    os.rename(f"{ODD}/data/class0", f"{ODD}/data/{ODD}")
    paths = (
        "--run.folder",
        ODD,
        "--run.name",
        ODD,
        "--data.train",
        f"{ODD}/data",
        "--data.val",
        f"{ODD}/data",
    )
    train(capsys, *TINY, *paths, "--run.max-steps", "1")
    folder = here / ODD / ODD
    out = train(capsys, str(folder / "config.json"), "--run.max-steps", "2")
    assert "caf\\udce9/checkpoints/step-00000001.pt at step 1" in out
    assert "caf\\udce9" in (folder / "log.txt").read_text()
    assert json.loads((folder / "config.json").read_text())["run"]["name"] == ODD
    assert step_of(folder) == 2
    for words in (
        ("evaluate", f"{ODD}/{ODD}", "--subnets", "0", "--output", f"{ODD}/v.json"),
        ("analyze", "epochs", f"{ODD}/{ODD}"),
        ("export", f"{ODD}/{ODD}", "--format", "safetensors", "-o", f"{ODD}/x.safetensors"),
        ("report", f"{ODD}/{ODD}"),
        ("runs", ODD),
        ("watch", f"{ODD}/{ODD}", "--once"),
        ("check", f"{ODD}/{ODD}/config.json"),
    ):
        status, out, err = run(capsys, *words)
        assert status == 0, (words, err)
    assert "caf\\udce9" in (folder / "report.html").read_text()
    status, _, err = run(capsys, "train", *TINY, *paths, "--run.tensorboard")
    assert status == 2
    assert (
        "run.tensorboard is True and run.folder 'caf\\udce9/caf\\udce9'; allowed: a folder whose name" in err
    )


def test_a_manifest_keeps_names_that_are_no_utf8(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.rename("data/class0", f"data/{ODD}")
    Path("classes").write_bytes(b"class2\ncaf\xe9\nclass1\n")
    status, _, err = run(capsys, "data", "check", "data", "-o", "m.jsonl", "--classes", "classes")
    assert status == 0, err
    manifest = read_manifest(Path("m.jsonl"))
    assert manifest.classes == ("class2", ODD, "class1")
    assert os.path.isfile(manifest.images().path(3))
    assert manifest.records[3].path == f"{ODD}/0.jpg"
    status, _, err = run(capsys, "data", "pack", "m.jsonl", "-o", "tars", "--shards", "1")
    assert status == 0, err
    assert read_manifest(Path("tars/manifest.jsonl")).classes == manifest.classes


def test_an_error_can_be_printed_and_written_whatever_it_names() -> None:
    assert str(DataError(f"image {ODD} is bad")) == "image caf\\udce9 is bad"
