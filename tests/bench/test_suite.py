"""The other benchmarks and the suite: rows, right results first, mistakes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import checks, decoders, step, step_check, torch_loaders, walk
from bench.__main__ import main
from bench.accuracy import Comparison
from bench.case import Check
from bench.checks import WrongResultError
from fasttrain.config import Data
from fasttrain.errors import ConfigError
from fasttrain.pipelines.folder import scan
from tests.pipelines.conftest import write_images

CPU = torch.device("cpu")


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_step_computes_the_right_thing_here() -> None:
    (check,) = [each for each in step_check.checks(CPU) if each.label == "stpp-split"]
    for comparison in check.compare():
        comparison.check()


def test_a_wrong_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that are a hundredth too long."""
    right = step_check.run

    def wrong(name: str, device: torch.device, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        factor = 1.0 if ":" in name else 1.01
        return [(loss, factor * gradients) for loss, gradients in right(name, device, dtype)]

    monkeypatch.setattr(step_check, "run", wrong)
    with pytest.raises(AssertionError, match="error of the gradients"):
        [comparison.check() for comparison in step_check.compare("ct", CPU)]


def test_walk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "walk.csv"
    options = ["--model", "cifar_resnet20", "--crop", "16", "--batch", "2", "--sample", "3", "--rounds", "1"]
    assert main(["walk", "--device", "cpu", *options, "-o", str(path)]) == 0
    for statistics in ("main", "reestimated"):
        values = {row["metric"]: float(row["value"]) for row in read(path) if row["statistics"] == statistics}
        assert values["block_ratio"] == pytest.approx(27 * 6 / 39)  # 3 + 9 + 27 nodes
        assert values["ratio"] == pytest.approx(values["one_by_one"] / values["walk"])
    assert "27 subnets" in capsys.readouterr().out
    assert main(["walk", "--device", "cpu", "--crop", "8"]) == 2
    assert "--crop is 8; allowed: at least 32" in capsys.readouterr().err


@pytest.mark.pipelines
@pytest.mark.parametrize(
    ("stages", "measured"),
    [
        ("small", [("small", "dali"), ("small", "dali-folded"), ("small", "pil")]),
        pytest.param(
            "decode,crop",  # which have no colours to fold
            [("decode", "dali"), ("decode", "pil"), ("crop", "dali"), ("crop", "pil")],
            marks=pytest.mark.heavy,  # each in a process of its own
        ),
    ],
)
def test_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stages: str, measured: list[tuple[str, str]]
) -> None:
    for index in range(12):
        folder = tmp_path / "images" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg")
    path = tmp_path / "data.csv"
    options = ["--device", "cpu", "--crop", "96", "--batch", "4", "--batches", "2", "--rounds", "1"]
    options += ["--stages", stages, "--loaders", "dali,dali-folded,pil"]
    assert main(["data", str(tmp_path / "images"), *options, "-o", str(path)]) == 0
    rows = read(path)
    assert [(row["stage"], row["loader"]) for row in rows[::2]] == measured
    assert all(float(row["value"]) > 0 for row in rows)
    assert {row["side"] for row in rows if row["stage"] == "small"} == (
        {"96"} if stages == "small" else set()
    )
    assert f"{measured[-1][0]}: dali" in capsys.readouterr().out
    assert main(["data", str(tmp_path / "images"), "--batch", "13", "--device", "cpu"]) == 2
    assert "--batch is 13; allowed: up to the 12 images" in capsys.readouterr().err
    assert main(["data", str(tmp_path / "images"), "--batch", "4", "--stages", "fry"]) == 2
    assert "--stages holds 'fry'; allowed: decode, crop" in capsys.readouterr().err


def test_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A round of two steps of each kind; each save is a snapshot and a writing."""
    path = tmp_path / "save.csv"
    options = ["--recipe", "demo-ct", "--device", "cpu", "--batch", "4", "--steps", "2", "--rounds", "1"]
    assert main(["save", *options, "--folder", str(tmp_path), "-o", str(path)]) == 0
    rows = read(path)
    seconds = [row["metric"] for row in rows if row["unit"] == "s"]
    assert seconds[:4] == ["quiet", "quiet", "saving", "saving"]
    assert seconds.count("snapshot") == seconds.count("writing") >= 1
    assert rows[-1]["metric"] == "delay"
    assert "delays the median step by" in capsys.readouterr().out
    assert [each.name for each in tmp_path.iterdir()] == ["save.csv"]
    assert main(["save", "--device", "cpu", "--batch", "1"]) == 2


@pytest.mark.pipelines
def test_decoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "images", 12, (60, 80))
    options = ["--device", "cpu", "--crop", "32", "--batch", "4", "--batches", "2", "--rounds", "1"]
    path = tmp_path / "decoders.csv"
    assert main(["decoders", folder.root, *options, "-o", str(path)]) == 0
    rows = read(path)
    assert [row["way"] for row in rows[::2]] == ["window", "whole", "drawn"]
    assert all(float(row["value"]) > 0 for row in rows)
    assert "whole: " in capsys.readouterr().out
    assert decoders._loads("0,0.5") == [0.0, 0.5]
    with pytest.raises(ConfigError, match=r"--loads is '0,2'; allowed: numbers from 0 to 1"):
        decoders._loads("0,2")


@pytest.mark.pipelines
def test_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rounds of one step each; what waits is part of what the pipeline costs."""
    folder = write_images(tmp_path / "images", 12, (60, 80))
    options = ["--device", "cpu", "--recipe", "cifar10-resnet56-stpp", "--batch", "4", "--steps", "1"]
    options += ["--rounds", "2"]
    path = tmp_path / "wait.csv"
    assert main(["wait", folder.root, *options, "--warmup", "1", "-o", str(path)]) == 0
    rows = read(path)
    assert [row["metric"] for row in rows] == ["resident", "loaded", "waiting", "cost"] * 2
    values = {row["metric"]: float(row["value"]) for row in rows[:4]}
    assert values["cost"] == pytest.approx(100 * (1 - values["resident"] / values["loaded"]))
    assert 0 <= values["waiting"] < 100
    assert "of a step" in capsys.readouterr().out
    assert main(["wait", folder.root, "--device", "cpu", "--batch", "13"]) == 2
    assert main(["wait", folder.root, "--device", "cpu", "--recipe", "nix"]) == 2


@pytest.mark.pipelines
@pytest.mark.filterwarnings("ignore:The image decoding")  # torchvision's, which is what is compared with
def test_torch_loaders_give_what_they_are_compared_for(tmp_path: Path) -> None:
    """Normalized crops and their downscaled copies; decoded pixels without augmentation."""
    (tmp_path / "a").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    for index in range(3):
        Image.fromarray(pixels).save(tmp_path / "a" / f"{index}.png")
    folder = scan(tmp_path)
    for kind in ("pil", "torchvision"):
        given = list(torch_loaders.batches(kind, folder, Data(crop=32), batch=2, count=3, workers=0, side=16))
        assert [(tuple(full.shape), tuple(small.shape)) for full, small in given] == [
            ((2, 3, 32, 32), (2, 3, 16, 16))
        ] * 3
        assert -3 < given[0][0].min() < given[0][0].max() < 3
        ((decoded,),) = torch_loaders.batches(kind, folder, None, batch=3, count=1, workers=0)
        assert torch.equal(decoded[:, :, 0, 0], torch.from_numpy(pixels[20, 24]).expand(3, 3))


def record(calls: list[str], name: str, error: Exception | None = None) -> Callable[[list[str]], None]:
    def part(arguments: list[str]) -> None:
        calls.append(f"{name} {' '.join(arguments)}")
        if error:
            raise error

    return part


def test_the_suite_measures_nothing_that_is_wrong_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(step, "main", record(calls, "step"))
    monkeypatch.setattr(walk, "main", record(calls, "walk", WrongResultError("the walk is wrong")))
    monkeypatch.setattr(checks, "run", lambda *_: ["normalized_loss"])
    arguments = ["suite", "--device", "cpu", "--minutes", "3", "-o", str(tmp_path)]
    assert main(arguments) == 1
    assert "wrong on cpu: normalized_loss" in capsys.readouterr().err
    assert [call.split()[0] for call in calls] == ["step", "walk"]
    assert "--minutes 1.5" in calls[0]
    assert str(tmp_path / "walk.csv") in calls[1]
    monkeypatch.setattr(checks, "run", lambda *_: ["step"])
    calls.clear()
    assert main(arguments) == 1
    assert [call.split()[0] for call in calls] == ["walk"]


def test_checks_leave_a_row_each(tmp_path: Path) -> None:
    path = tmp_path / "checks.csv"
    assert main(["checks", "--device", "cpu", "--ops", "batchnorm_act_pool", "-o", str(path)]) == 0
    rows = read(path)
    assert len(rows) == len(checks.checks_of("batchnorm_act_pool", CPU)) > 0
    assert {(row["op"], row["holds"], row["fault"]) for row in rows} == {("batchnorm_act_pool", "1", "")}
    assert all(0 < float(row["worst"]) <= 1 and int(row["results"]) > 0 for row in rows)
    assert main(["checks", "--device", "cpu", "--ops", "nix"]) == 2


def test_wrong_results_have_rows_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong() -> Iterator[Comparison]:
        exact = torch.ones(2, dtype=torch.float64)
        yield Comparison("right", exact.float(), exact.float(), exact)
        yield Comparison("broken", exact.float() + 1, exact.float(), exact)

    monkeypatch.setattr(checks, "checks_of", lambda name, device: [Check("case", wrong)])
    path = tmp_path / "checks.csv"
    assert main(["checks", "--device", "cpu", "--ops", "step", "-o", str(path)]) == 1
    (row,) = read(path)
    assert (row["holds"], row["results"], row["worst"]) == ("0", "1", "0.0")
    assert "broken" in row["fault"]
    assert "wrong on cpu: step" in capsys.readouterr().err


def test_suite_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", "--device", "cpu", "--minutes", "0"]) == 2
    assert "--minutes is 0; allowed: above 0" in capsys.readouterr().err
    assert main(["suite", "--device", "cpu", "--compare", "nix"]) == 2
    assert "--compare is 'nix'; allowed: a commit" in capsys.readouterr().err


def test_minutes_end_a_step_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "step.csv"
    options = ["--device", "cpu", "--model", "cifar_resnet20", "--num-classes", "10", "--crop", "32"]
    options += ["--batch", "2", "--modes", "ct", "--warmup", "0", "--minutes", "0", "--draws", "5"]
    assert main(["step", *options, "-o", str(path)]) == 0
    assert {row["draw"] for row in read(path)} == {"0"}
