"""The accuracy study: what it trains, that it goes on where it was cut off, and its rows."""

from __future__ import annotations

import csv
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import study
from bench.__main__ import main
from fasttrain.errors import RunError
from fasttrain.pipelines.folder import scan
from fasttrain.pipelines.resident import decode
from tests.pipelines.conftest import write_images

OPTIONS = ["--crop", "16", "--epochs", "2", "--batch", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    for part, count in (("train", 40), ("test", 20)):
        write_images(root / part, count, (32, 33), classes=2, seed=len(part))
    return root


def run(images: Path, folder: Path, *options: str) -> int:
    arguments = [str(images), *OPTIONS, "--state", str(folder / "state"), "-o", str(folder / "study.csv")]
    return main(["study", *arguments, *options])


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "study.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_every_run(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(images, tmp_path, "--methods", "ct,stpp-coupled", "--seeds", "2") == 0
    rows = read(tmp_path)
    metrics = ["main", "subnets_mean", "subnets_deviation", "subnets_worst"]
    expected = [(m, s, k) for s in "01" for m in ("ct", "stpp-coupled") for k in metrics]
    assert [(row["method"], row["seed"], row["metric"]) for row in rows] == expected
    assert {(row["images"], row["epochs"], row["crop"], row["model"]) for row in rows} == {
        ("40", "2", "16", "cifar_resnet20")
    }
    assert {row["subnets"] for row in rows if row["method"] == "ct"} == {"0"}
    assert all(0 <= float(row["value"]) <= 100 for row in rows)
    assert "nothing left" in capsys.readouterr().out
    assert not list((tmp_path / "state").iterdir())  # finished runs leave no state


def test_a_finished_run_is_not_repeated_and_other_settings_are(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path, "--methods", "ct", "--seeds", "1", "--epochs", "1") == 0
    before = (tmp_path / "study.csv").read_bytes()
    assert run(images, tmp_path, "--methods", "ct", "--seeds", "1", "--epochs", "1") == 0
    assert (tmp_path / "study.csv").read_bytes() == before
    assert "0 runs to do" in capsys.readouterr().out
    assert run(images, tmp_path, "--methods", "ct", "--seeds", "1", "--images", "20") == 0
    assert (tmp_path / "study.csv").read_bytes().startswith(before)
    assert {row["images"] for row in read(tmp_path)} == {"40", "20"}


def test_a_run_cut_off_goes_on_to_the_same_result(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock jumps past the deadline after the first epoch."""
    methods = ["--methods", "stpp-rk", "--seeds", "1"]
    assert run(images, tmp_path / "whole", *methods) == 0
    clock = iter([0.0, 0.0, *[1e9] * 9])  # the command's start, the first epoch's, the second's
    monkeypatch.setattr(study.time, "time", lambda: next(clock))
    assert run(images, tmp_path / "parts", *methods) == 0
    assert not (tmp_path / "parts" / "study.csv").exists()
    (state,) = (tmp_path / "parts" / "state").iterdir()
    monkeypatch.undo()
    assert run(images, tmp_path / "parts", *methods) == 0
    assert not state.exists()
    values = [[row["value"] for row in read(tmp_path / part)] for part in ("whole", "parts")]
    assert values[0] == values[1]


def test_runs_side_by_side_give_the_same(images: Path, tmp_path: Path) -> None:
    methods = ["--methods", "ct,st", "--seeds", "1", "--epochs", "1"]
    assert run(images, tmp_path / "one", *methods) == 0
    assert run(images, tmp_path / "two", *methods, "--jobs", "2") == 0
    one, two = (
        {(row["method"], row["metric"]): float(row["value"]) for row in read(tmp_path / part)}
        for part in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert one["ct", "main"] == pytest.approx(two["ct", "main"], abs=11)  # threads differ, 20 images


@pytest.mark.parametrize("name", study.METHODS)
def test_methods_of_stpp_differ_in_what_their_name_says_alone(name: str) -> None:
    base, own = study.METHODS["stpp-r1"], study.METHODS[name]
    fields = {"sizes_per_step", "subnet_share", "subnet_inputs", "draws"}
    differing = {field for field in base.__slots__ if getattr(base, field) != getattr(own, field)}
    if name.startswith("stpp"):
        assert differing <= fields
    assert (name == "stpp-r1") == (not differing)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--methods", "ct,kd"], 2, "--methods holds 'kd'"),
        (["--minutes", "0"], 2, "--minutes"),
        (["--minutes", "nan"], 2, "--minutes is nan"),
        (["--seeds", "99999999999"], 2, "at most 1000"),
        (["--crop", "1000000"], 2, "at most 4096"),
        (["--seeds", "0"], 2, "--seeds is 0"),
        (["--jobs", "0"], 2, "--jobs is 0"),
        (["--model", "resnet9"], 2, "model.name"),
        (["--batch", "64"], 2, "run.batch"),
    ],
)
def test_mistakes_are_named(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    status: int,
    message: str,
) -> None:
    assert run(images, tmp_path, *options) == status
    assert message in capsys.readouterr().err


def test_a_folder_without_images_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none", tmp_path) == 3
    assert "none/train" in capsys.readouterr().err


def test_a_file_cut_off_is_refused_and_a_run_without_all_rows_is_done_again(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["--methods", "ct", "--seeds", "1", "--epochs", "1"]
    assert run(images, tmp_path, *methods) == 0
    path = tmp_path / "study.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert run(images, tmp_path, *methods) == 3
    assert "cut off" in capsys.readouterr().err
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    assert run(images, tmp_path, *methods) == 0
    assert "1 runs to do" in capsys.readouterr().out


def test_another_data_set_is_another_study(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["--methods", "ct", "--seeds", "1", "--epochs", "1"]
    assert run(images, tmp_path, *methods) == 0
    for part, count in (("train", 42), ("test", 20)):
        write_images(tmp_path / "others" / part, count, (32, 33), classes=3)
    assert run(tmp_path / "others", tmp_path, *methods) == 0
    assert "1 runs to do" in capsys.readouterr().out.splitlines()[-3]
    assert len({row["data"] for row in read(tmp_path)}) == 2
    write_images(tmp_path / "mixed" / "train", 20, (32, 33), classes=2)
    write_images(tmp_path / "mixed" / "test", 20, (32, 33), classes=3)
    assert run(tmp_path / "mixed", tmp_path, *methods) == 3
    assert "other classes" in capsys.readouterr().err


class Deadly:
    """Images whose use ends the process, as an out-of-memory killer does."""

    def to(self, device: object) -> None:
        """Move them."""
        os._exit(9)


def test_a_worker_that_dies_ends_the_study_with_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one whose study has ended stops by itself, its state kept."""
    jobs: list[study.Job] = []

    def keep(given: list[study.Job], *rest: object) -> list[object]:
        jobs.extend(given)
        return []

    monkeypatch.setattr(study, "_run", keep)
    assert run(images, tmp_path, "--methods", "ct", "--seeds", "1") == 0
    orphan = replace(jobs[0], parent=1 if os.getppid() != 1 else 2)
    train, test = (decode(scan(images / part), 16) for part in ("train", "test"))
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as left:
        study.train_one(orphan, train, test)
    assert left.value.code == os.EX_TEMPFAIL
    monkeypatch.undo()

    with pytest.raises(RunError, match="a process of the study died"):
        list(study._run([orphan], Deadly(), Deadly(), 2))  # type: ignore[arg-type]
