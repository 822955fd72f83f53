"""`python -m bench plan`: the link model by hand, labels, checks, errors."""

from __future__ import annotations

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from bench import links, published
from bench.__main__ import main
from bench.costs import parameters
from bench.forecast import SCALE, Assumptions, Forecast, forecast, scaling, shape_of
from bench.links import BUCKET_BYTES, Cluster, Link, all_reduce, buckets, exposed, ring, tree
from bench.plan_check import Check, checks
from bench.rates import Rate, find_rate, read_files, work_of
from bench.rows import RESULTS
from fasttrain import recipes
from fasttrain.errors import ConfigError

NVLINK, NETWORK = Link(100e9, 1e-6), Link(10e9, 10e-6)
NONE = Assumptions(block_seconds=0, data_wait=0, utilisation=0.5, nvlink=NVLINK, network=NETWORK)
RATE = Rate(seconds=1e-3, plain=5e-4, calls=40, joules=None, label="measured", source="here")
STPP = recipes.recipe("rn50-stpp-a1")


def cluster(gpus: int, nodes: int = 1) -> Cluster:
    return Cluster(gpus, nodes, NVLINK, NETWORK)


def plan(gpus: int, batch: int, assumptions: Assumptions = NONE, rate: Rate = RATE) -> Forecast:
    return forecast(STPP, "a100", rate, shape_of(gpus, batch), 1_281_167, assumptions)


def test_ring_and_tree_by_hand() -> None:
    assert ring(1e9, 2, NVLINK) == pytest.approx(2 * (0.5e9 / 100e9 + 1e-6))
    assert ring(1e9, 4, NVLINK) == pytest.approx(2 * 3 / 4 * 1e9 / 100e9 + 6e-6)
    assert tree(1e9, 8, NETWORK) == pytest.approx(2 * 1e9 / 10e9 + 6 * 10e-6)


def test_one_gpu_has_nobody_to_talk_to() -> None:
    assert ring(1e9, 1, NVLINK) == tree(1e9, 1, NVLINK) == 0
    assert all_reduce(1e9, cluster(1)) == exposed(10**8, cluster(1), 0) == 0


def test_nodes_exchange_each_gpu_s_share() -> None:
    within = 2 * 7 / 8 * 8e8 / 100e9 + 14e-6
    two = 2 * (0.5 * 1e8 / 10e9 + 10e-6)
    assert all_reduce(8e8, cluster(16, 2)) == pytest.approx(within + two)
    small = (
        2 * 7 / 8 * 8e3 / 100e9 + 14e-6 + 2 * (1e3 / 10e9 + 7 * 10e-6)
    )  # the tree: 7 levels, not 127 steps
    assert all_reduce(8e3, cluster(1024, 128)) == pytest.approx(small)


def test_buckets_hold_every_byte() -> None:
    size = 4 * 25_557_032  # ResNet-50 in float32
    assert size == 4 * parameters("resnet50")
    assert buckets(size) == [BUCKET_BYTES] * 3 + [size - 3 * BUCKET_BYTES]
    assert buckets(2 * BUCKET_BYTES) == [BUCKET_BYTES] * 2


def test_the_last_bucket_and_what_does_not_fit_are_waited_for() -> None:
    one = all_reduce(BUCKET_BYTES, cluster(8))
    assert exposed(3 * BUCKET_BYTES, cluster(8), window=2 * one) == pytest.approx(one)
    assert exposed(3 * BUCKET_BYTES, cluster(8), window=0.5 * one) == pytest.approx(2.5 * one)
    assert exposed(3 * BUCKET_BYTES, cluster(8), window=0) == pytest.approx(3 * one)


def test_a_forecast_by_hand() -> None:
    own = plan(8, 64)
    wait = all_reduce(buckets(4 * 25_557_032)[-1], cluster(8))  # the window of 21 ms hides the others
    assert own.compute == pytest.approx(0.064)
    assert own.step == pytest.approx(0.064 + wait)
    assert own.steps == 200 * (1_281_167 // 512) == 500_400
    assert own.hours == pytest.approx(500_400 * own.step / 3600)
    assert own.images_per_second == pytest.approx(512 / own.step)
    assert own.efficiency == pytest.approx(0.064 / own.step)
    assert own.joules == pytest.approx(0.5 * 400 * 8 * 3600 * own.hours)


def test_host_data_wait_and_measured_joules() -> None:
    own = plan(
        1, 8, Assumptions(block_seconds=1e-3, data_wait=0.2), Rate(1e-3, 5e-4, 40, 2.0, "measured", "")
    )
    assert own.compute == pytest.approx(0.040), "40 block calls of a millisecond, not 8 images"
    assert own.step == pytest.approx(0.050)
    assert own.joules == pytest.approx(2.0 * 8 * own.steps)
    assert own.metrics()["energy"][2] == own.metrics()["hours"][2] == "measured"
    assert plan(2, 8).metrics()["hours"][2] == "estimated", "the link model is in it"


def test_the_partial_batch_counts_where_it_is_kept() -> None:
    twin = recipes.recipe("rn50-stpp-a1-published")
    assert forecast(twin, "a100", RATE, shape_of(2, 256), 1_281_167, NONE).steps == 200 * 2503


def test_split_passes_hide_nothing() -> None:
    size = 4 * parameters("resnet50")
    config = recipes.recipe("rn50-stpp-a1")
    split = replace(config, method=replace(config.method, backward="split"))
    own = forecast(split, "a100", RATE, shape_of(8, 64), 1_281_167, NONE)
    assert own.exposed == pytest.approx(all_reduce(size, cluster(8)))


def test_monotony() -> None:
    for nodes in (1, 2, 16, 128):
        assert all_reduce(1e8, cluster(8 * nodes, nodes)) < all_reduce(2e8, cluster(8 * nodes, nodes))
        assert all_reduce(1e8, cluster(8 * nodes, nodes)) < all_reduce(1e8, cluster(16 * nodes, 2 * nodes))
    lines = list(scaling(STPP, plan(8, 64), 1_281_167, NONE))
    assert [gpus for gpus, _, _ in lines] == list(SCALE)
    weak = [own for _, own, _ in lines if own]
    fixed = [own for _, _, own in lines if own]
    assert len(weak) == len(SCALE)
    assert [own.shape.batch for own in fixed] == [512 // gpus for gpus in SCALE if 512 // gpus >= 2]
    for line in (weak, fixed):
        assert line[0].efficiency == 1
        assert all(a.efficiency >= b.efficiency for a, b in itertools.pairwise(line))
    assert all(a.hours > b.hours for a, b in itertools.pairwise(weak))


STEP_HEADER = "bench,mode,metric,value,unit,draw,model,crop,batch,subnets,space,device\n"


def write_rows(results: Path, gpu: str, ct: float, stpp: float) -> None:
    """A step.csv: seconds of 100 images."""
    folder = results / gpu.lower().replace(" ", "-")
    folder.mkdir(parents=True)
    place = f"resnet50,200,100,{{}},{gpu}\n"
    (folder / "step.csv").write_text(
        STEP_HEADER
        + f"step,ct,seconds,{ct},s,0,{place.format('0,')}"
        + f"step,stpp-r1,seconds,{stpp - 0.1},s,0,{place.format('6,space3')}"
        + f"step,stpp-r1,seconds,{stpp + 0.1},s,1,{place.format('6,space3')}"
        + f"step,stpp-r1,joules_per_image,0.3,J,mean,{place.format('6,space3')}"
    )


def test_rows_of_the_gpu_are_measured(tmp_path: Path) -> None:
    write_rows(tmp_path, "NVIDIA H200", 1.0, 2.0)
    write_rows(tmp_path, "NVIDIA A100-SXM4-80GB", 3.0, 6.0)
    rate = find_rate(work_of(STPP), "h200", read_files(tmp_path))
    assert (rate.seconds, rate.plain, rate.joules) == (pytest.approx(0.02), pytest.approx(0.01), 0.3)
    assert rate.label == "measured"
    assert "NVIDIA H200, crop 200, batch 100" in rate.source


def test_another_gpu_s_rows_are_scaled(tmp_path: Path) -> None:
    write_rows(tmp_path, "NVIDIA H200", 1.0, 2.0)
    rate = find_rate(work_of(STPP), "a100", read_files(tmp_path))
    assert rate.seconds == pytest.approx(0.02 * 3079 / 1582)
    assert (rate.label, rate.joules) == ("estimated", None)
    assert "NVIDIA H200" in rate.source
    coupled = replace(STPP, method=replace(STPP.method, draws="coupled"))  # has no rows: its FLOPs over CT's
    rate = find_rate(work_of(coupled), "h200", read_files(tmp_path))
    assert rate.seconds == pytest.approx(0.01 * 1.7292, rel=1e-3)
    assert (rate.label, "FLOPs" in rate.source) == ("estimated", True)


def test_the_rows_of_the_nearest_crop_count(tmp_path: Path) -> None:
    write_rows(tmp_path, "NVIDIA H200", 1.0, 2.0)
    folder = tmp_path / "nvidia-h200"
    other = (folder / "step.csv").read_text().replace("resnet50,200", "resnet50,224")
    (folder / "step-224.csv").write_text(other)
    assert "crop 200" in find_rate(work_of(STPP), "h200", read_files(tmp_path)).source
    larger = replace(STPP, data=replace(STPP.data, crop=224))
    assert "crop 224" in find_rate(work_of(larger), "h200", read_files(tmp_path)).source


def test_a_network_that_no_figure_speaks_for_needs_rows(tmp_path: Path) -> None:
    mobile = replace(STPP, model=replace(STPP.model, name="mobilenetv3_large_100"))
    work = work_of(replace(mobile, method=replace(STPP.method, space="default")))
    with pytest.raises(ConfigError, match=r"trains mobilenetv3_large_100; allowed: ResNets, .* bench step"):
        find_rate(work, "h200", [])


def test_without_gpu_rows_published_figures_and_the_cpu_s_ratio() -> None:
    files = [file for file in read_files(RESULTS) if not file.gpu]
    rate = find_rate(work_of(STPP), "a100", files)
    assert rate.label == "estimated"
    assert "2470 img/s amp (NVIDIA DeepLearningExamples), scaled by FLOPs to resnet50 at 200" in rate.source
    assert "times that by rows of AMD EPYC" in rate.source
    assert rate.plain == pytest.approx(1 / 2470 * (200 / 224) ** 2, rel=0.08), "nearly as the pixels"
    faster = find_rate(work_of(STPP), "h100", files)
    assert faster.seconds == pytest.approx(rate.seconds * 1582 / 2790)
    published_twin = find_rate(work_of(recipes.recipe("rn50-stpp-a1-published")), "a100", files)
    assert "938 img/s tf32" in published_twin.source


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("rn50-ct-200", "ct"),
        ("rn50-st-200", "st"),
        ("rn50-stpp-a1", "stpp-r1"),
        ("rn50-ct-200-published", "ct:published"),
        ("rn50-stpp-a1-published", "naive"),
    ],
)
def test_recipes_are_modes_of_the_step_benchmark(name: str, mode: str) -> None:
    assert work_of(recipes.recipe(name)).mode == mode


def test_the_model_beside_recorded_figures() -> None:
    cpu = [file for file in read_files(RESULTS) if not file.gpu]
    found: list[Check] = list(checks(cpu, Assumptions()))
    assert {check.recorded for check in found} >= {459.0, 163.0, 16621.0, 7248.0}
    by_rows = [check for check in found if check.unit == "plain steps"]
    assert len(by_rows) >= 6
    assert all(abs(check.error) < 0.2 for check in found)
    assert all(abs(check.error) < 0.12 for check in by_rows), "FLOPs tell a CPU's seconds within 12 %"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.csv"
    write_rows(tmp_path, "NVIDIA H200", 1.0, 2.0)
    options = ["--gpus", "16", "--gpu", "h200,a100", "--results", str(tmp_path), "-o", str(output)]
    assert main(["plan", *options]) == 0, capsys.readouterr().err
    text = capsys.readouterr().out
    assert "rn50-stpp-a1 on 16 GPUs, 2 nodes: 200 epochs of 1,281,167 images at 200 pixels" in text
    assert "h200, measured: rows of NVIDIA H200" in text
    assert "a100, estimated: rows of NVIDIA H200" in text
    assert "Assumptions:" in text
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"plan", "weak", "fixed", "check"}
    assert {row["device"] for row in rows} == {"computed"}
    hours = {
        row["gpu"]: float(row["value"]) for row in rows if row["metric"] == "hours" and row["part"] == "plan"
    }
    assert hours["a100"] > hours["h200"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "b200"], r"--gpu is 'b200'; did you mean h200\? allowed: a100, h100, h200"),
        (["--recipe", "nix"], r"unknown recipe 'nix'; allowed: .*rn50-stpp-a1"),
        (["--gpus", "0"], r"--gpus is 0; allowed: at least 1"),
        (["--gpus", "7"], r"run.batch is 512; allowed: a multiple of the 7 processes"),
        (["--gpus", "16", "--nodes", "3"], r"--gpus is 16; allowed: a multiple of the 3 nodes"),
        (["--images", "500"], r"--images is 500; allowed: at least the global batch of 512"),
        (["--network", "fast"], r"--network is 'fast'; allowed: GB/s and microseconds"),
        (["--nvlink", "0,1"], r"--nvlink is '0,1'; allowed: GB/s and microseconds"),
        (["--data-wait", "1"], r"--data-wait is 1; allowed: 0 to 0.99"),
    ],
)
def test_mistakes_are_named(options: list[str], message: str) -> None:
    from bench import plan as command

    with pytest.raises(ConfigError, match=message):
        command.main(options)


def test_every_gpu_has_links_and_watts() -> None:
    for name, gpu in published.GPUS.items():
        assert gpu.nvlink.bandwidth > gpu.network.bandwidth > 0, name
        assert isinstance(gpu.network, links.Link)
        assert gpu.watts >= 400
