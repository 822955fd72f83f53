"""Two processes under torchrun (gloo) train as one process does, fed the same tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from fasttrain import distributed
from fasttrain.config import Run
from fasttrain.errors import ConfigError
from fasttrain.models import create_model

ROOT = Path(__file__).parent.parent
WORKER = ROOT / "tests" / "distributed_worker.py"


def torchrun(processes: int, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the worker under torchrun, or alone."""
    command = [sys.executable, str(WORKER), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as logs:
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
            options = [f"--log-dir={logs}", f"--nproc-per-node={processes}", "--"]
            command = [sys.executable, *launcher, *options, *command[1:]]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )


HEAVY = pytest.mark.heavy


@pytest.mark.parametrize(
    "mode",
    [
        *("frozen", "same", "split", "classifiers"),
        *(pytest.param(mode, marks=HEAVY) for mode in ("accumulate", "bf16")),
    ],
)
def test_two_processes_train_as_one(tmp_path: Path, mode: str) -> None:
    """`frozen`: each process has half of every batch. DDP's mean of two gradients over 4 images each is the
    gradient over 8 if no image influences another: batch norm works by its running statistics.
    `same`: both have the whole batch, so that batch statistics are equal too, in training mode.
    `split`: likewise, in passes of their own, with one all-reduce after them instead of DDP's.
    `accumulate`: as `frozen`, each batch in three parts. `bf16`: as `same`, gradients rounded on their way.
    `classifiers`: as `same`, classifiers within the network trained with it.
    Float64: what is left is rounding.
    """
    rtol, atol = (0.05, 5e-3) if mode == "bf16" else (1e-9, 1e-11)
    for processes in (1, 2):
        result = torchrun(processes, str(tmp_path), mode)
        assert result.returncode == 0, result.stderr
    alone, first, second = (
        torch.load(tmp_path / f"{mode}-{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    assert alone["draws"] == first["draws"] == second["draws"]
    assert bool(alone["auxiliary"]) == (mode == "classifiers")
    for part in ("network", "ema", "auxiliary"):
        for key, value in alone[part].items():
            torch.testing.assert_close(first[part][key], value, rtol=rtol, atol=atol)
            torch.testing.assert_close(first[part][key], second[part][key], rtol=0, atol=0)
    weights = alone["network"]["layer1.0.conv1.weight"]
    torch.manual_seed(11)
    initial = create_model("cifar_resnet20", 10).state_dict()["layer1.0.conv1.weight"]
    assert float((weights - initial).abs().max()) > 1e-4  # it did train


def test_two_processes_learn_one_mask_token(tmp_path: Path) -> None:
    """Rank 1's masks are others than rank 0's; the gradients are averaged, the token's too."""
    for processes in (1, 2):
        result = torchrun(processes, str(tmp_path), "token")
        assert result.returncode == 0, result.stderr
    alone, first, second = (
        torch.load(tmp_path / f"token-{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    for part in ("network", "auxiliary"):
        for key, value in first[part].items():
            torch.testing.assert_close(value, second[part][key], rtol=0, atol=0)
    assert not torch.equal(alone["auxiliary"]["mask_token"], first["auxiliary"]["mask_token"])


def test_compression_needs_ddps_own_reduction() -> None:
    network = create_model("cifar_resnet20", 10)
    process = distributed.Process(0, 2, torch.device("cpu"))
    with pytest.raises(
        ConfigError, match=r"run\.gradient_compression is 'bf16' with method\.backward 'split'"
    ):
        distributed.wrap(network, process, joint=False, compression="bf16")


def test_a_batch_must_divide() -> None:
    assert distributed.local_batch(12, 3) == 4
    with pytest.raises(ConfigError, match=r"run\.batch is 12; allowed: a multiple of the 5 processes"):
        distributed.local_batch(12, 5)


def test_the_launcher_trains_in_two_processes(tmp_path: Path) -> None:
    """Both processes' images count: exact evaluation, disjoint batches, one record."""
    environment = {**os.environ, "PYTHON": sys.executable, "PROCESSES": "2", "OMP_NUM_THREADS": "1"}
    environment["GLOO_SOCKET_IFNAME"] = "lo"
    data = [
        "--data.train",
        str(tmp_path / "digits" / "train"),
        "--data.val",
        str(tmp_path / "digits" / "test"),
    ]
    run = ["--run.folder", str(tmp_path), "--run.max-steps", "3", "--run.log-every", "3"]
    result = subprocess.run(
        ["bash", str(ROOT / "launch.sh"), "demo", *data, *run, "--evaluation.subnets", "2"],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()
    training, evaluation, subnets = map(json.loads, lines)
    assert training["global_step"] == 3
    assert evaluation["images"] == 355
    assert len(subnets["top1"]) == 2
    assert result.stdout.count("2 processes, global batch 64") == 1


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RANK": "abc"}, "RANK is 'abc'; allowed: 0 to 0"),
        ({"RANK": "5"}, "RANK is '5'; allowed: 0 to 0"),
        ({"RANK": ""}, "RANK is ''; allowed: 0 to 0"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is ''"),
        ({"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE is ''; allowed: 1 to "),
        ({"LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE is 'x'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "y"}, "MASTER_PORT is 'y'"),
    ],
)
def test_variables_that_are_not_torchruns_are_told(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=told):
        distributed.start(Run())
