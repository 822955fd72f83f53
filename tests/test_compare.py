"""`fasttrain compare`: costs, the table and its ties, and whole comparisons that go on where they were."""

from __future__ import annotations

import csv
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain import cli, comparison
from fasttrain.comparison import Budget, cost, epochs_within, parse_budget, runs
from fasttrain.comparison.cost import Cost, measure_costs
from fasttrain.comparison.result import Row, Spread, rows_of, spread, ties, verdict_line
from fasttrain.comparison.runs import Verdict, judged_subnets, run_of
from fasttrain.config import Config
from fasttrain.errors import ConfigError
from fasttrain.models import create_model
from fasttrain.recipes import recipe

from .test_cli import readme_commands, run
from .test_trainer import images

__all__ = ["images"]


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("6", Budget(epochs=6)),
        ("6 epochs", Budget(epochs=6)),
        ("28m", Budget(minutes=28)),
        ("0.5min", Budget(minutes=0.5)),
        ("90 minutes", Budget(minutes=90)),
    ],
)
def test_budgets(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "0", "0m", "1.5", "-3", "3h", "m", "nan"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--budget is {text!r}; allowed: epochs")):
        parse_budget(text)


def test_minutes_become_epochs() -> None:
    """Two seeds in 10 minutes, 20 seconds gone: 290 seconds each, 50 of them fixed, leave 12 epochs of 20."""
    assert epochs_within(Budget(minutes=10), 2, 20.0, 50.0, 20.0) == 12
    with pytest.raises(ConfigError, match=r"--budget is 1m; allowed here: about 3m or more"):
        epochs_within(Budget(minutes=1), 2, 20.0, 50.0, 20.0)


def test_rows_are_means_and_deviations_over_seeds() -> None:
    verdicts = {
        "ct": [Verdict(99.0, [50.0, 70.0]), Verdict(97.0, [40.0, 60.0])],
        "st": [Verdict(98.0, [90.0, 90.0]), Verdict(98.0, [80.0, 84.0])],
        "none yet": [],
    }
    costs = {"ct": Cost(0.1, 1000), "st": Cost(0.15, 1100), "none yet": Cost(1.0, 1)}
    ct, st = rows_of(costs, verdicts, "ct")
    assert (ct.step_ms, ct.time, ct.memory, ct.seeds) == (100.0, 1.0, 1.0, 2)
    assert (st.time, st.memory) == (pytest.approx(1.5), pytest.approx(1.1))
    assert (ct.main.mean, ct.main.deviation) == (98.0, pytest.approx(2**0.5))
    assert (ct.subnets.mean, ct.subnets.deviation) == (55.0, pytest.approx(50**0.5))
    assert ct.deviation == Spread(10.0, 0.0)
    assert (st.deviation.mean, st.deviation.deviation) == (1.0, pytest.approx(2**0.5))
    assert spread([3.0]) == Spread(3.0, None)
    assert str(ct.main) == "98.00 ± 1.41"


def row(name: str, mean: float, deviation: float | None, seeds: int = 3) -> Row:
    own = Spread(mean, deviation)
    return Row(name, 1.0, 1.0, 1.0, own, own, own, seeds)


def test_ties_are_said_to_be_ties() -> None:
    """Within the larger of the two deviations; the order is the table's."""
    rows = [row("a", 97.0, 0.5), row("b", 98.0, 0.1), row("c", 97.4, 0.7), row("d", 97.5, 0.5)]
    assert ties(rows, "main") == ["b", "c", "d"]
    assert verdict_line(rows, "main") == "main network: a tie within one standard deviation of b, c, d"
    alone = verdict_line(rows[:2], "subnets")
    assert alone == "mean of all subnets: b is highest, by more than one standard deviation"
    single = [row("a", 97.0, None, 1), row("b", 98.0, None, 1)]
    assert verdict_line(single, "main").endswith("b is highest, of one seed, which tells nothing of ties")


def small(name: str) -> Config:
    config = recipe(name)
    return replace(config, run=replace(config.run, batch=16, device="cpu", precision="fp32"))


def test_costs_are_ordered_as_in_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """ST's memory is about CT's in split mode, layer supervision's larger, stage supervision's between."""
    monkeypatch.setattr(cost, "DRAWS", 3)
    names = ("demo-ct", "demo-st", "demo-layer", "demo-stage")
    costs = measure_costs({name: small(name) for name in names}, 10)
    memory = {name: each.bytes / costs["demo-ct"].bytes for name, each in costs.items()}
    assert memory["demo-st"] < 1.15
    assert 1 < memory["demo-stage"] < memory["demo-layer"]
    assert memory["demo-layer"] > 1.15
    assert all(each.seconds > 0 for each in costs.values())


def test_the_average_of_the_weights_counts_as_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "DRAWS", 1)
    plain = small("demo-ct")
    averaged = replace(plain, optim=replace(plain.optim, ema=0.9))
    costs = measure_costs({"plain": plain, "averaged": averaged}, 10)
    weights = sum(each.nbytes for each in create_model("cifar_resnet20", 10).state_dict().values())
    assert costs["averaged"].bytes - costs["plain"].bytes >= weights


def test_each_side_is_warmed_up_for() -> None:
    step = cost._Step(small("demo"), 10)
    seen: set[int] = set()
    step.train = lambda draw, small=None: seen.update(each.shape[-1] for each in step._small(draw))  # type: ignore[method-assign]
    step.warm_up()
    assert seen == set(step.config.method.sizes)


def test_measured_steps_change_no_weight() -> None:
    step = cost._Step(small("demo"), 10)
    before = [parameter.clone() for parameter in step.network.parameters()]
    for draw in range(2):
        assert step.seconds(draw) > 0
    assert all(map(torch.equal, before, step.network.parameters()))


def test_runs_differ_in_seed_length_and_folder_alone() -> None:
    config = run_of(recipe("demo"), "demo", 2, 7, Path("x"))
    assert (config.run.seed, config.run.epochs, config.run.name) == (2, 7, "demo-seed2")
    assert config.optim == replace(recipe("demo").optim, warmup_epochs=0.5)  # 1 of 14
    assert config.evaluation.subnets == 0
    assert (config.method, config.data, config.model) == (
        recipe("demo").method,
        recipe("demo").data,
        recipe("demo").model,
    )


def test_all_ordered_subnets_are_judged_whatever_the_space() -> None:
    network = create_model("cifar_resnet20", 10)
    assert len(judged_subnets(network, -1)) == 27
    assert judged_subnets(network, 4) == judged_subnets(network, 4)


def arguments(images: Path, folder: Path, *more: str) -> list[str]:
    """Two recipes on the tests' images, a few steps each."""
    data = f"--data.train {images}/train --data.val {images}/val --data.builtin none --data.num-classes 3"
    small = "--evaluation.calibration-images 16 --evaluation.batch 8 --run.batch 8 --run.device cpu"
    own = ["--seeds", "2", "--subnets", "3", "-o", str(folder), *more]
    return ["compare", "demo-ct", "demo-stage", *own, *data.split(), *small.split()]


def test_a_comparison_goes_on_where_it_was(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "DRAWS", 2)
    command = arguments(images, tmp_path / "c", "--budget", "1")
    trained: list[str] = []

    def train(config: Config) -> Any:
        trained.append(config.run.name)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return own(config)

    own = runs.train
    monkeypatch.setattr(runs, "train", train)
    status, _, err = run(capsys, *command)
    assert (status, err) == (130, "fasttrain: interrupted\n")
    status, out, err = run(capsys, *command)
    assert status == 0, err
    names = [f"{name}-seed{seed}" for seed in (0, 1) for name in ("demo-ct", "demo-stage")]
    assert trained == [*names[:3], *names[2:]]  # each once, but for what was interrupted
    assert "time over demo-ct's" in out
    assert "main network: " in out
    result = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [each["recipe"] for each in result["rows"]] == ["demo-ct", "demo-stage"]
    assert [each["seeds"] for each in result["rows"]] == [2, 2]
    assert result["epochs"] == 1
    with (tmp_path / "c" / "comparison.csv").open() as file:
        table = list(csv.DictReader(file))
    assert float(table[1]["main"]) == result["rows"][1]["main"]["mean"]
    assert float(table[0]["time"]) == float(table[0]["memory"]) == 1
    verdict = json.loads((tmp_path / "c" / "demo-ct-seed0" / "comparison.json").read_text())
    assert len(verdict["top1"]) == len(verdict["depths"]) == 3
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "measure_costs", None)  # known, too
        status, again, _ = run(capsys, *command)
    assert status == 0
    assert len(trained) == 5
    assert again.splitlines()[-10:] == out.splitlines()[-10:]
    status, _, err = run(capsys, *command, "--evaluation.normalize", "layer_norm")
    assert status == 0, err
    assert len(trained) == 9  # each is asked, finds itself finished, and is judged anew
    judged = json.loads((tmp_path / "c" / "demo-ct-seed0" / "comparison.json").read_text())["judged"]
    assert judged["evaluation"]["normalize"] == "layer_norm"
    status, _, err = run(capsys, *arguments(images, tmp_path / "c", "--budget", "2"))
    assert status == 2
    assert "cannot resume with other settings: " in err
    assert "run.epochs is 2, was 1" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--budget 1", "allowed: two or more different recipes, before the options"),
        ("demo-ct demo-ct --budget 1", "allowed: two or more different recipes"),
        ("demo-ct nix --budget 1", "unknown recipe 'nix'"),
        ("demo-ct --budget 1", "compare demo-ct; allowed: two or more different recipes"),
        ("demo-ct demo --budget 0", "--budget is '0'; allowed: epochs"),
        ("demo-ct demo --budget 1 --seeds 0", "--seeds is 0; allowed: 1 or more"),
        ("demo-ct demo --budget 1 --subnets 0", "--subnets is 0; allowed: -1 or more, not 0"),
        (
            "demo-ct rn50-ct-200 --budget 1",
            "model.name is 'cifar_resnet20' in demo-ct, 'resnet50' in rn50-ct-200; allowed: the same in all",
        ),
        (
            "rn50-ct-200 rn50-ct-rsb-a2 --budget 1",
            "run.batch is 512 in rn50-ct-200, 2048 in rn50-ct-rsb-a2; allowed: the same in all recipes "
            "(--run.batch VALUE sets it in all)",
        ),
        ("rn50-ct-200 rn50-st-200 --budget 1", "rn50-ct-200: data.val is empty"),
        (
            "demo-ct demo --budget 1 --run.epochs 3",
            "--run.epochs is set by the comparison; allowed: --budget",
        ),
        ("demo-ct demo --budget 1 --run.seed=3", "--run.seed is set by the comparison; allowed: --seeds"),
        ("demo-ct demo", "--budget"),
    ],
)
def test_mistakes_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, message: str
) -> None:
    status, _, err = run(capsys, "compare", *words.split(), "-o", str(tmp_path))
    assert status == 2
    assert message in err


def test_the_readmes_comparisons_parse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(comparison, "compare", lambda configs, *_, **__: seen.append(len(configs)))
    commands = [shlex.split(line)[1:] for line in readme_commands()]
    for words in (words for words in commands if words[0] == "compare"):
        assert run(capsys, *words)[0] == 0
    assert max(seen) == 8
    assert cli.USAGE.count("compare RECIPE") == 1
