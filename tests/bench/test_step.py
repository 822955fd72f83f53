"""`python -m bench step`: its baseline, its counters, its CSV and its errors."""

from __future__ import annotations

import csv
import itertools
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import bench.step
from bench import fit, measure, modes, naive
from bench.__main__ import COMMANDS, main
from bench.modes import MODES, Batch, Mode, Setup, default_sizes, prefixes, widest
from bench.rows import STEP_COLUMNS, Rows
from bench.step import count_flops
from bench.trainee import Trainee, train_step
from bench.variants import VARIANTS, Variant
from fasttrain.errors import ConfigError, OutOfMemoryError
from fasttrain.models import StagedNetwork, TreeForward, create_model
from fasttrain.subnets import Draw, PrefixTree, depths_of, ordered_space

CPU = torch.device("cpu")
SETUP = Setup(subnets=3, space="default", crop=32, sizes=(16, 24), seed=0)
TINY = [
    *("step", "--device", "cpu", "--threads", "1", "--model", "cifar_resnet20", "--num-classes", "10"),
    *("--crop", "32", "--batch", "4", "--draws", "2", "--space", "default", "--subnets", "3"),
    *("--sizes", "16,24"),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def network() -> StagedNetwork:
    torch.manual_seed(0)
    return create_model("cifar_resnet20", 10).train()


def build_mode(name: str, setup: Setup, network: StagedNetwork) -> Mode:
    return modes.build_mode(name, setup, network, CPU, "fp32")


def backward(mode: Mode, network: StagedNetwork, images: Tensor, targets: Tensor, step: int) -> Tensor:
    """The loss of a step of a mode; the gradients stay in the network."""
    draw = mode.draw(step)
    forward = network if mode.name == "timm" else TreeForward(network)
    return mode.backward(train_step(forward, mode, CPU, "fp32"), mode.batch(images, targets, draw), draw)


def batch_of(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return images, torch.tensor([0, 3, 9, 3], device=device)


def gradients(mode: Mode, network: StagedNetwork, step: int) -> tuple[Tensor, list[Tensor]]:
    network = network.double()
    network.zero_grad()
    loss = backward(mode, network, *batch_of(dtype=torch.float64), step)
    return loss, [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("step", range(3))
def test_naive_step_computes_our_cascaded_gradients(network: StagedNetwork, step: int) -> None:
    ours, theirs = (build_mode(name, SETUP, network) for name in ("stpp-cascaded", "naive"))
    assert ours.draw(step) == theirs.draw(step)
    loss, expected = gradients(ours, network, step)
    naive_loss, actual = gradients(theirs, network, step)
    torch.testing.assert_close(naive_loss, loss, rtol=1e-12, atol=0)
    assert len(actual) == len(expected) == len(list(network.parameters()))
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).norm() <= 1e-10 * b.norm()


def test_naive_draws_every_integer_side_of_the_published_range() -> None:
    assert naive.sizes(200) == tuple(range(86, 201))


def hooked_flops(network: StagedNetwork, mode: Mode, step: int) -> int:
    """Forward and backward FLOPs by arithmetic on the shapes that forward hooks see."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            forward = 2 * output.numel() * module.weight[0].numel()
        else:
            assert isinstance(module, nn.Linear)
            forward = 2 * output.numel() * module.in_features
        # backward: the gradient of the weight, and of the input unless that is the images
        total += forward * (3 if inputs[0].requires_grad else 2)

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    backward(mode, network, *batch_of(), step)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("name", ["ct", "naive", "stpp-r2", "stpp-coupled", "st-k"])
def test_flops_on_meta_are_those_of_the_layers_that_run(network: StagedNetwork, name: str) -> None:
    mode = build_mode(name, SETUP, network)
    expected = hooked_flops(network, mode, step=1)
    draw = mode.draw(1)
    counted = count_flops(mode, network.to("meta"), mode.batch(*batch_of("meta"), draw), draw)
    assert counted == expected


def test_block_calls_are_those_that_run(network: StagedNetwork) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for block in itertools.chain.from_iterable(network.stages):
        block.register_forward_hook(count)
    for name in MODES:
        calls = 0
        mode = build_mode(name, SETUP, network)
        draw = mode.draw(0)
        batch = mode.batch(*batch_of(), draw)
        backward(mode, network, *batch_of(), 0)
        assert mode.block_calls(batch, draw) == calls, name


def test_memory_counter_finds_a_known_peak() -> None:
    state = [torch.zeros(1000), torch.zeros(500)]
    state.append(state[0].view(10, 100))  # shares its storage, counts once

    def work() -> None:
        a = torch.empty(1_000_000)
        b = torch.empty(2_000_000)  # the peak: 12 MB
        del a
        c = torch.empty(500_000)
        del b, c

    assert measure.peak_bytes(CPU, work, state) == (12_000_000 + 6000, 6000)


def test_memory_counter_sees_what_autograd_saves() -> None:
    x = torch.ones(100_000, requires_grad=True)
    peak, _ = measure.peak_bytes(CPU, lambda: x.exp().exp().sum().backward(), [x])
    # x, two saved results of 400 kB, and at most two gradients of that size at a time
    assert 3 * 400_000 <= peak <= 5 * 400_000 + 1000


def test_worst_draw_has_most_tree_nodes() -> None:
    space = list(ordered_space("space3", (3, 4, 6, 3)))
    chosen = widest(space, 6, [set()])
    most = max(len(PrefixTree(six)) for six in itertools.combinations(space, 6))
    assert len(PrefixTree(chosen)) == most == 37
    assert len(set(chosen)) == 6


@pytest.mark.parametrize("name", MODES)
def test_worst_draw_is_one_that_can_be_drawn(network: StagedNetwork, name: str) -> None:
    mode = build_mode(name, SETUP, network)
    worst = mode.worst_draw()
    assert set(worst.subnets) <= set(mode.space)
    assert set(worst.sizes) <= set(mode.options.sizes)
    batch = mode.batch(*batch_of(), worst)
    drawn = [mode.draw(step) for step in range(20)]
    assert all(len(draw.sizes) in (len(worst.sizes), mode.options.sizes_per_step) for draw in drawn)
    calls = [mode.block_calls(mode.batch(*batch_of(), draw), draw) for draw in drawn]
    assert max(calls) <= mode.block_calls(batch, worst)


def test_worst_st_draw_shares_only_the_first_block() -> None:
    network = create_model("resnet50", 10)
    mode = build_mode("st", SETUP, network)
    (subnet,) = mode.worst_draw().subnets
    assert depths_of(subnet, 4)[1:] == (4, 6, 3)
    assert len(prefixes(subnet) - prefixes(network.full)) == 13


def test_default_sizes_resemble_the_published_range() -> None:
    assert default_sizes(200) == (96, 112, 128, 160, 176, 192)
    for crop in (32, 64, 160, 192, 200, 224):
        ours, published = default_sizes(crop), naive.sizes(crop)
        assert 1 < len(ours) <= 6
        assert max(ours) <= crop
        assert abs(sum(ours) / len(ours) / (sum(published) / len(published)) - 1) < 0.1


RUN_MODES = ("ct", "naive", "stpp-r1", "st")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV of `python -m bench` in a process without DALI and tyro."""
    path = tmp_path_factory.mktemp("bench") / "new" / "step.csv"
    code = (
        "import sys, runpy; sys.modules['nvidia.dali'] = sys.modules['tyro'] = None;"
        "runpy.run_module('bench', run_name='__main__', alter_sys=True)"
    )
    options = ["--modes", ",".join(RUN_MODES), "--warmup", "0", "--memory", "-o", str(path)]
    options += ["--precision", "fp32"]  # naive's, whose memory is compared
    done = subprocess.run(
        [sys.executable, "-c", code, *TINY, *options],
        cwd=Path(measure.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "CPU timing" in done.stdout
    return path


def test_csv_has_a_row_per_measurement(results: Path) -> None:
    with results.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == STEP_COLUMNS
    expected = [
        (mode, metric, draw)
        for mode in RUN_MODES
        for metric, draws in (
            ("seconds", "01"),
            ("flops", "01"),
            ("block_calls", "01"),
            ("peak_bytes", ["worst"]),
            ("state_bytes", ["worst"]),
        )
        for draw in draws
    ]
    assert sorted((row["mode"], row["metric"], row["draw"]) for row in rows) == sorted(expected)
    assert all(float(row["value"]) > 0 for row in rows)
    assert {row["unit"] for row in rows if row["metric"] == "seconds"} == {"s"}
    by_mode = {row["mode"]: row for row in rows}
    assert (by_mode["stpp-r1"]["sizes"], by_mode["naive"]["sizes"]) == ("16 24", "13-32")
    assert (by_mode["ct"]["memory_format"], by_mode["naive"]["memory_format"]) == (
        "channels_last",
        "contiguous",
    )


def test_memory_of_modes_is_in_the_expected_order(results: Path) -> None:
    with results.open() as file:
        peak = {
            row["mode"]: int(row["value"]) for row in csv.DictReader(file) if row["metric"] == "peak_bytes"
        }
    assert peak["ct"] < peak["st"] < peak["stpp-r1"]
    assert peak["ct"] <= peak["naive"] < peak["stpp-r1"]


def test_summary_says_that_it_timed_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, "--draws", "1", "--warmup", "0", "--modes", "st,ct", "--no-flops"]
    assert main([*arguments, "-o", str(tmp_path / "step.csv")]) == 0
    out = capsys.readouterr().out
    assert "CPU timing" in out
    assert "FLOPs" not in out
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["mode", "st", "ct"]


def test_rows_replace_an_older_file_only_when_there_are_some(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("my notes\n")
    with pytest.raises(ConfigError, match="holds something else"):
        Rows(path, STEP_COLUMNS, {"bench": "step"})
    older = ",".join(STEP_COLUMNS) + "\nolder\n"
    path.write_text(older)
    rows = Rows(path, STEP_COLUMNS, {"bench": "step"})
    rows.add(mode="a", metric="seconds", value=1.5)
    assert path.read_text() == older
    rows.write()
    rows.add(mode="b", metric="seconds", value=2.5)
    rows.write()
    with path.open() as file:
        assert [(row["mode"], row["value"], row["n"]) for row in csv.DictReader(file)] == [
            ("a", "1.5", "1"),
            ("b", "2.5", "1"),
        ]


@pytest.mark.parametrize(
    ("arguments", "given", "allowed"),
    [
        (["step", "--modes", "ct,fast"], "'fast'", "stpp-r1"),
        (["step", "--modes", "ct:fast"], "'ct:fast'", "plain"),
        (["step", "--modes", "naive:plain"], "'naive:plain'", "published"),
        (["step", "--modes", "timm", "--model", "cifar_resnet20", "--crop", "32"], "'timm'", "timm's"),
        (["step", "--batch", "1"], "1", "at least 2"),
        (["step", "--batch", "fit"], "fit", "at least 2 (fit on a GPU)"),
        (["step", "--draws", "0"], "0", "at least 1"),
        (["step", "--draws", "many"], "many", "int"),
        (["step", "--crop", "16"], "16", "at least 32"),
        (["step", "--crop", "160", "--sizes", "96,192"], "96,192", "160"),
        (["step", "--sizes", "a"], "'a'", "sides in pixels"),
        (["step", "--space", "space9"], "space9", "default"),
        (["step", "--model", "resnet51"], "resnet51", "resnet18"),
        (["step", "--modes", "stpp-r3", "--subnets", "2"], "3", "1 to 2"),
        (["step", "--precision", "fp8"], "fp8", "bf16"),
        (["step", "-o", "/dev/null/step.csv"], "/dev/null/step.csv", ""),
        (["jump"], "'jump'", "step"),
        ([], "''", "step"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], given: str, allowed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = [] if "-o" in arguments or arguments[:1] != ["step"] else ["-o", str(tmp_path / "step.csv")]
    device = ["--device", "cpu"] if arguments[:1] == ["step"] else []
    assert main([*arguments, *device, *output]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert given in line
    assert allowed in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["step", "--device", "cuda"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cuda" in line
    assert "cpu" in line


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_timms_step_is_common_training(name: str) -> None:
    """The same loss and gradients as ours, from the same weights."""
    network = create_model(name, 10).double().train()
    theirs = timm.create_model(name, num_classes=10).double().train()
    theirs.load_state_dict(network.state_dict())
    setup = Setup(subnets=3, space="default", crop=32, sizes=(16,), seed=0)
    results = []
    for name, model in (("ct", network), ("timm", theirs)):
        mode = build_mode(name, setup, network)
        loss = backward(mode, model, *batch_of(dtype=torch.float64), 0)
        results.append((loss, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-14)


def test_variants_are_what_they_say() -> None:
    variants = {name: make(CPU, "fp32") for name, make in VARIANTS.items()}
    assert variants["ours"] == variants["plain"] == Variant("fp32")
    assert variants["triton"] == Variant("fp32", batch_norm="triton", kernels="triton")
    assert variants["bf16"].precision == "bf16"
    assert variants["published"] == Variant("fp32", channels_last=False, tuned=False)
    assert variants["block"].compile == "block"


def test_every_kind_of_step_runs_on_a_mobilenet(tmp_path: Path) -> None:
    path = tmp_path / "step.csv"
    names = "ct,timm,naive,stpp-r1,st,st-split,st-k"
    model = ["--model", "mobilenetv3_small_050", "--draws", "1", "--warmup", "0"]
    assert main([*TINY, *model, "--modes", names, "-o", str(path)]) == 0
    with path.open() as file:
        flops = {row["mode"]: float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "flops"}
    assert flops["ct"] == flops["timm"] < flops["st"] < flops["st-split"]
    assert flops["stpp-r1"] < flops["naive"]


def test_batch_norms_that_cannot_be_fused_are_measured_as_torchs(network: StagedNetwork) -> None:
    mobilenet = create_model("mobilenetv3_small_050", 10)
    assert build_mode("ct:triton", SETUP, network).variant.batch_norm == "triton"
    assert build_mode("ct:triton", SETUP, mobilenet).variant.batch_norm == "torch"


def test_a_variant_of_a_mode_is_measured_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "step.csv"
    modes = "ct,ct:contiguous,st-split,stpp-split"
    assert main([*TINY, "--warmup", "0", "--modes", modes, "-o", str(path)]) == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["mode"]: row["memory_format"] for row in rows} == {
        "ct": "channels_last",
        "ct:contiguous": "contiguous",
        "st-split": "channels_last",
        "stpp-split": "channels_last",
    }
    flops = {
        mode: [r["value"] for r in rows if (r["mode"], r["metric"]) == (mode, "flops")]
        for mode in modes.split(",")
    }
    assert flops["ct"] == flops["ct:contiguous"]


def test_the_largest_batch_is_found_by_doubling() -> None:
    tried: list[int] = []

    def holds(batch: int) -> bool:
        tried.append(batch)
        return batch <= 100

    assert fit.largest_batch(holds) == 64
    assert tried == [2, 4, 8, 16, 32, 64, 128]
    with pytest.raises(OutOfMemoryError, match="not even 2 images"):
        fit.largest_batch(lambda batch: False)


def test_a_batch_that_runs_out_of_memory_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--device", "cpu", "--model", "cifar_resnet20", "--num-classes", "10", "--crop", "32"]
    settings = bench.step.parse([*arguments, "--space", "default", "--modes", "ct,stpp-r1,naive"])
    seen = []
    train = Trainee.train

    def scarce(self: Trainee, mode: Mode, batch: Batch, draw: Draw) -> Tensor:
        seen.append((mode.name, len(batch.images)))
        if len(batch.images) > 4 and mode.name == "stpp-r1":
            raise torch.OutOfMemoryError
        return train(self, mode, batch, draw)

    monkeypatch.setattr(Trainee, "train", scarce)
    assert fit.largest_batch(partial(bench.step.holds_batch, settings)) == 4
    assert seen[:3] == [("ct", 2), ("stpp-r1", 2), ("naive", 2)]
    assert seen[-1] == ("stpp-r1", 8)
