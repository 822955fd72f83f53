"""`python -m bench growth`: costs block by block against counted steps, its CSV, its plot."""

from __future__ import annotations

import csv
import itertools
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest
import torch

from bench.__main__ import main
from bench.costs import meta_network, naive_cost, plain_cost, step_cost
from bench.growth import CURVES
from bench.modes import MODES, Setup
from bench.rows import RESULTS
from fasttrain import flops
from fasttrain.recipes.imagenet import FAST_SIZES

SETUP = Setup(6, "space3", 200, FAST_SIZES, seed=0)
SMALL = Setup(3, "default", 32, (16, 24), seed=0)


@pytest.fixture(scope="module")
def counted() -> dict[str, tuple[float, float]]:
    """FLOPs per image and block calls of the committed step rows, the mean of 24 draws of each mode."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    with (RESULTS / "amd-epyc-cpu-2-cores" / "step.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            values[row["mode"], row["metric"]].append(float(row["value"]))
            batch = int(row["batch"])
    modes = [mode for mode, metric in values if metric == "flops"]
    return {
        mode: (fmean(values[mode, "flops"]) / batch, fmean(values[mode, "block_calls"])) for mode in modes
    }


@pytest.mark.parametrize(
    "mode",
    [
        *("ct", "stpp-r1", "stpp-coupled", "stpp-split", "st", "st-split"),
        pytest.param("naive", marks=pytest.mark.heavy),  # 24 draws of separate passes
    ],
)
def test_costs_are_those_that_a_whole_step_counts(counted: dict[str, tuple[float, float]], mode: str) -> None:
    cost = step_cost("resnet50", MODES[mode](SETUP), 200, draws=24)
    assert (cost.flops, cost.calls) == pytest.approx(counted[mode])


def test_a_plain_step_of_a_basic_block_network() -> None:
    network = meta_network("cifar_resnet20", 10)

    def step() -> None:
        network(torch.empty(1, 3, 32, 32, device="meta")).sum().backward()

    assert plain_cost("cifar_resnet20", 32, 10).flops == flops.count(step)


def test_mobilenets_cost_what_a_whole_step_counts() -> None:
    network = meta_network("mobilenetv3_small_100")

    def step() -> None:
        network(torch.empty(1, 3, 64, 64, device="meta")).sum().backward()

    assert plain_cost("mobilenetv3_small_100", 64).flops == flops.count(step)


def test_subnets_on_half_of_the_batch_cost_half() -> None:
    def extra(mode: str) -> float:
        cost = step_cost("cifar_resnet20", MODES[mode](SMALL), 32, classes=10)
        return cost.flops - plain_cost("cifar_resnet20", 32, 10).flops

    assert extra("stpp-half") == pytest.approx(extra("stpp-r1") / 2)


def test_growth_is_between_the_plain_and_the_naive_step() -> None:
    def ratio(mode: str, count: int) -> float:
        setup = Setup(count, "default", 32, (16, 24), seed=0)
        cost = step_cost("cifar_resnet20", MODES[mode](setup), 32, classes=10)
        return cost.flops / plain_cost("cifar_resnet20", 32, 10).flops

    for mode in ("stpp-r1", "st-k"):
        ratios = [ratio(mode, count) for count in range(9)]
        assert ratios[0] == 1
        assert all(a < b for a, b in itertools.pairwise(ratios))
        assert ratios[8] - ratios[7] < ratios[2] - ratios[1] < ratios[1] - ratios[0], (
            "later subnets find more that is there"
        )
    options = MODES["st-k"](SMALL)
    tree = step_cost("cifar_resnet20", options, 32, classes=10)
    naive = naive_cost("cifar_resnet20", options, 32, classes=10)
    assert tree.flops < naive.flops
    assert tree.calls < naive.calls


def test_more_sizes_share_less() -> None:
    flops = [
        step_cost("cifar_resnet20", MODES[mode](SMALL), 32, classes=10).flops
        for mode in ("stpp-r1", "stpp-rk")
    ]
    assert flops[0] < flops[1]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "growth.csv"
    options = ["--models", "resnet26,resnet50", "--draws", "2", "--largest-k", "2", "-o", str(output)]
    assert main(["growth", *options]) == 0, capsys.readouterr().err
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["quantity"] for row in rows} == {"K", "R", "depth"}
    assert {row["curve"] for row in rows} == set(CURVES)
    assert {row["model"] for row in rows if row["quantity"] == "depth"} == {"resnet26", "resnet50"}
    plain = [row for row in rows if (row["quantity"], row["value"]) == ("K", "0")]
    assert plain
    assert {(row["tree"], row["naive"]) for row in plain} == {("1.0000", "1.0000")}
    pytest.importorskip("matplotlib")
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["-o", str(tmp_path / "growth.csv")]
    assert main(["growth", "--draws", "0", *output]) == 2
    assert "--draws is 0; allowed: at least 1" in capsys.readouterr().err
    assert main(["growth", "--models", "nix", *output]) == 2
    assert "model.name is 'nix'; allowed" in capsys.readouterr().err
