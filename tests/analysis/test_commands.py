"""Every `fasttrain analyze` command on tiny trained runs: what it writes and prints, and how it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fasttrain.analysis import EXPERIMENTS
from fasttrain.cli import main
from fasttrain.config import Config
from fasttrain.reevaluate import evaluate_checkpoint
from fasttrain.trainer import train
from tests.test_trainer import configure, write_images

FEW = ("--images", "9", "--batch", "9")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs on striped images.

    ct; stpp, of two epochs; alone, a subnet that was trained individually; larger, of another network.
    """
    folder = tmp_path_factory.mktemp("analysis")
    write_images(folder / "train", 12, 0)
    write_images(folder / "val", 5, 1)

    def go(name: str, **changes: Any) -> None:
        run = {"name": name, "epochs": 1, **changes.pop("run", {})}
        config: Config = configure(folder, folder, run=run, evaluation={"subnets": 0}, **changes)
        train(replace(config, optim=replace(config.optim, ema=0.0)))

    go("stpp", run={"epochs": 2})
    go("ct", method={"name": "common", "subnets": 0, "subnet_inputs": "full", "sizes": ()})
    alone = {"main_weight": 0.0, "supervision": "ce_target", "space": "1,2,3", "subnets": 1}
    go("larger", model={"name": "cifar_resnet32"}, run={"max_steps": 1}, method={"sizes": (16,)})
    go(
        "alone",
        run={"epochs": 2},
        method={**alone, "subnet_inputs": "full", "sizes": (), "normalize": "none"},
    )
    return folder


def analyze(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, dict[str, Any]]:
    """Exit status, what was printed, and the JSON file."""
    status = 0
    try:
        main(["analyze", *words])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    out, err = capsys.readouterr()
    if status:
        return status, " ".join((out + err).replace("│", " ").split()), {}
    written, picture = map(Path, out.split()[-2:])
    with Image.open(picture) as image:
        assert min(image.size) > 300
    return status, out, json.loads(written.read_text())


def both(runs: Path) -> tuple[str, str]:
    return str(runs / "ct"), str(runs / "stpp")


def test_subnets_repeat_the_evaluation_and_find_the_best_in_the_budget(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, out, found = analyze(
        *(capsys, "subnets", *both(runs), "-o", str(tmp_path / "new"), "--budget", "0.02"),
        *("--alone", str(runs / "alone"), "--batch", "8"),
    )
    assert status == 0
    assert "alone: 1-2-3" in " ".join(out.split())
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["subnets.json", "subnets.png"]
    verdict = evaluate_checkpoint(runs / "stpp" / "checkpoints" / "best.pt", device="cpu")
    ct, stpp = found["networks"]
    assert (ct["label"], stpp["label"]) == ("ct", "stpp")
    assert stpp["main"] == pytest.approx(verdict.main.top1)
    assert stpp["top1"] == pytest.approx(verdict.subnets[0].top1)
    assert stpp["mean"] == pytest.approx(verdict.subnets[0].mean)
    best = stpp["within_budget"]
    assert stpp["gflops"][best] <= 0.02 < max(stpp["gflops"])
    affordable = [i for i, cost in enumerate(stpp["gflops"]) if cost <= 0.02]
    assert stpp["top1"][best] == max(stpp["top1"][i] for i in affordable)
    (alone,) = found["alone"]
    assert alone["depths"] == [1, 2, 3]
    last = runs / "alone" / "checkpoints" / "step-00000008.pt"  # its best is its untrained main network's
    assert [alone["top1"]] == pytest.approx(evaluate_checkpoint(last, device="cpu").subnets[0].top1)


def test_a_smaller_network_of_the_same_blocks_is_a_subnet_alone(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger, ct = str(runs / "larger"), str(runs / "ct")
    status, _, found = analyze(capsys, "subnets", larger, "--space", "3,3,3-4", *FEW, "--alone", ct)
    assert status == 0
    ((alone,), (network,)) = found["alone"], found["networks"]
    assert alone["depths"] == network["depths"][0] == [3, 3, 3]
    assert alone["gflops"] == network["gflops"][0]
    _, _, own = analyze(capsys, "subnets", ct, "--subnets", "1", *FEW)
    assert alone["top1"] == own["networks"][0]["main"]


def test_deletion_of_one_and_of_several_agree(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, one = analyze(capsys, "delete-one", *both(runs), *FEW)
    assert status == 0
    assert out.split()[-1] == str(runs / "ct" / "analysis" / "delete-one.png")
    assert one["blocks"] == [f"{stage}.{block}" for stage in (1, 2, 3) for block in (1, 2, 3)]
    assert one["statistics"] == "main"
    status, _, several = analyze(
        capsys, "delete-several", *both(runs), *FEW, "--most", "2", "--samples", "10"
    )
    assert status == 0
    assert [len(group) for group in several["combinations"]] == [9, 10]
    for ours, theirs in zip(one["networks"], several["networks"], strict=True):
        assert (ours["label"], ours["intact"], ours["top1"]) == (
            theirs["label"],
            theirs["intact"],
            theirs["top1"][0],
        )


def test_permutations_start_with_the_intact_order(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, found = analyze(capsys, "permute", *both(runs), *FEW)
    assert status == 0
    assert len(found["orders"]) == len(found["tau"]) == 24  # 3! 2! 2!
    assert found["tau"][0] == 1
    assert found["swaps"][0] == 0
    for network in found["networks"]:
        assert network["top1"][0] == network["intact"]


def test_kl_over_all_checkpoints_or_those_given(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, found = analyze(capsys, "kl", *both(runs), *FEW)
    assert status == 0
    assert [(point["label"], point["epoch"]) for point in found["points"]] == [
        ("ct", 1),
        ("stpp", 1),
        ("stpp", 2),
    ]
    full = found["depths"].index([3, 3, 3])
    for point in found["points"]:
        assert point["kl"][full] == pytest.approx(0, abs=1e-5)
        assert min(kl for i, kl in enumerate(point["kl"]) if i != full) > 0
    files = sorted((runs / "stpp" / "checkpoints").glob("step-*.pt"))
    status, _, again = analyze(capsys, "kl", *map(str, files), *FEW)
    assert status == 0
    assert [point["kl"] for point in again["points"]] == [point["kl"] for point in found["points"][1:]]


def test_amplitude_bound_and_layers_cover_all_subnets(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, amplitude = analyze(capsys, "amplitude", *both(runs), *FEW)
    assert status == 0
    for network in amplitude["networks"]:
        assert len(network["norm"]) == 28
        assert min(network["norm"]) > 0
        # the main network is a subnet of itself
        assert network["norm"][0] == pytest.approx(network["norm"][1 + 26], rel=1e-5)
    status, _, bound = analyze(capsys, "bound", *both(runs), *FEW, "--statistics", "main")
    assert status == 0
    for network in bound["networks"]:
        assert len(network["gap"]) == 27
        assert all(
            abs(gap) <= limit + 1e-6 for gap, limit in zip(network["gap"], network["bound"], strict=True)
        )
    status, _, layers = analyze(capsys, "layers", *both(runs), *FEW)
    assert status == 0
    assert [count["subnets"] for count in layers["counts"]] == [9] * 18


def test_receptive_fields_at_each_size(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, found = analyze(capsys, "receptive-field", *both(runs), *FEW, "--sizes", "16", "32")
    assert status == 0
    assert [(field["label"], field["size"]) for field in found["fields"]] == [
        ("ct", 16),
        ("ct", 32),
        ("stpp", 16),
        ("stpp", 32),
    ]
    for field in found["fields"]:
        assert sum(map(sum, field["field"])) == pytest.approx(1)
        assert 0 < field["sides"][0] <= field["sides"][1] <= field["size"]


def test_epochs_and_number_read_the_metrics(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, epochs = analyze(capsys, "epochs", *both(runs))
    assert status == 0
    assert [curve["epochs"] for curve in epochs["curves"]] == [[1], [1, 2]]
    status, _, number = analyze(capsys, "number", *both(runs))
    assert status == 0
    assert [(run["subnets"], run["best"]) for run in number["runs"]] == [
        (0, epochs["curves"][0]["top1"][0]),
        (3, max(epochs["curves"][1]["top1"])),
    ]


@pytest.fixture(scope="module")
def odd(runs: Path) -> Path:
    """Folders that are almost runs."""
    folder = runs / "odd"
    shutil.copytree(runs / "ct", folder / "unevaluated")
    (folder / "unevaluated" / "metrics.jsonl").write_text("")
    shutil.copytree(runs / "ct", folder / "truncated")
    path = folder / "truncated" / "checkpoints" / "best.pt"
    path.write_bytes(path.read_bytes()[:1000])
    (folder / "file").write_text("")
    damaged = {
        "nameless": '{"kind": "evaluation", "epoch": 1}',
        "timeless": '{"kind": "evaluation", "top1": 5.0}',
        "shapeless": '{"kind": "evaluation", "epoch": 1, "top1": 5.0}\n{"kind": "subnets", "mean": "x"}',
    }
    for name, line in damaged.items():
        shutil.copytree(runs / "ct", folder / name)
        (folder / name / "metrics.jsonl").write_text(f"{line}\n")
    shutil.copytree(runs / "ct", folder / "unconfigured")
    (folder / "unconfigured" / "config.json").write_text("")
    shutil.copytree(runs / "ct", folder / "barred")
    (folder / "barred" / "metrics.jsonl").unlink()
    (folder / "barred" / "metrics.jsonl").mkdir()
    (folder / "barred" / "pictures" / "kl.png").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("", 2, "NAME: subnets, delete-one"),
        ("fly ct", 2, "analyze fly: unknown; allowed: subnets, delete-one"),
        ("subnets", 2, "analyze subnets needs a run"),
        ("subnets --budget 1", 2, "analyze subnets needs a run"),
        ("subnets nowhere", 4, "no checkpoint in"),
        ("subnets ct --budget -1", 2, "--budget is -1.0; allowed: at least 0"),
        ("subnets ct --images -1", 2, "--images is -1; allowed: at least 0"),
        ("subnets ct --subnets 0", 2, "--subnets is 0; allowed: at least 1"),
        ("subnets ct --space 9,9,9", 2, "method.space is '9,9,9'"),
        ("subnets ct --statistics both", 2, "both"),
        ("subnets ct --val nowhere", 3, "nowhere"),
        ("subnets ct --alone stpp --images 3", 2, "--alone stpp trained more than one network"),
        ("delete-one ct --budget 1", 2, "--budget"),
        ("delete-one odd/truncated", 4, "odd/truncated/checkpoints/best.pt"),
        ("delete-several ct --samples -1", 2, "--samples is -1; allowed: 0 to 100000"),
        ("permute ct --samples 0", 2, "--samples is 0; allowed: 1 to 100000"),
        ("receptive-field ct --sizes 2", 2, "--sizes has 2; allowed for cifar_resnet20: at least 4"),
        ("kl nowhere", 4, "no checkpoint in"),
        ("epochs odd", 2, "allowed here: a run's folder"),
        ("epochs odd/unevaluated", 3, "was never evaluated"),
        ("number stpp larger", 2, "the runs are of cifar_resnet20, cifar_resnet32"),
        ("kl ct larger", 2, "allowed here: runs of one network"),
        (
            "delete-one ct larger",
            2,
            "ct is a cifar_resnet20, larger a cifar_resnet32; allowed here: runs of one",
        ),
        ("subnets ct --alone larger --images 3", 2, "--alone larger is a cifar_resnet32, whose layer1.3.bn1"),
        ("number ct", 2, "all runs trained with 0 subnets"),
        ("epochs ct -o odd/file", 2, "cannot write to --output"),
        ("kl odd/truncated -o odd/file", 2, "cannot write to --output"),  # before anything is read
        ("kl odd/barred -o odd/barred/pictures", 2, "it is no file; allowed: another --output"),
        ("epochs odd/nameless", 3, "was never evaluated"),
        ("number odd/nameless stpp", 3, "was never evaluated"),
        ("epochs odd/timeless", 3, "was never evaluated"),
        ("epochs odd/barred", 3, "metrics.jsonl: Is a directory"),
        ("epochs odd/unconfigured", 2, "config.json holds no configuration that is known here"),
        ("number ct odd/unconfigured", 2, "config.json holds no configuration that is known here"),
        ("number ct odd/shapeless", 2, "all runs trained with 0 subnets"),
        (f"epochs {'x' * 5000}", 2, "allowed here: a run's folder"),
        (f"subnets {'x' * 5000}", 4, "no checkpoint in"),
        ("delete-several ct --seed 99999999999", 2, "--seed is 99999999999; allowed: 0 to 2147483647"),
        ("permute ct --samples 1000000000", 2, "--samples is 1000000000; allowed: 1 to 100000"),
        ("receptive-field ct --sizes 100000", 2, "--sizes is 100000; allowed: 1 to 4096"),
    ],
)
def test_mistakes_are_one_message(
    runs: Path,
    odd: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(runs)
    got, text, _ = analyze(capsys, *command.split())
    assert (got, words in text, "Traceback" in text) == (status, True, False), text


def test_a_run_given_twice_is_two_curves(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ct = str(runs / "ct")
    status, _, found = analyze(capsys, "epochs", ct, ct, "-o", str(tmp_path))
    assert status == 0
    assert [each["label"] for each in found["curves"]] == [ct, f"{ct} (2)"]


def test_the_main_network_alone_has_no_kl(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("kl", str(runs / "ct"), "--space", "3,3,3", "--statistics", "main", *FEW, "-o", str(tmp_path))
    status, _, found = analyze(capsys, *words)
    assert (status, found["points"][0]["kl"]) == (0, [0.0])


def test_without_matplotlib_nothing_is_computed(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, text, _ = analyze(capsys, "epochs", str(runs / "ct"))
    assert (status, "plots need matplotlib: pip install" in text) == (2, True)


def test_each_experiment_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in EXPERIMENTS:
        with pytest.raises(SystemExit) as exit_:
            main(["analyze", name, "--help"])
        assert exit_.value.code == 0
        assert "--output" in capsys.readouterr().out
