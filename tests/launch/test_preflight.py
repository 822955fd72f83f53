"""`fasttrain check`: each mistake is found before anything is started or written."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from fasttrain.cli import main
from fasttrain.config import Config, Optim
from fasttrain.guards.lock import lock, look
from fasttrain.launch import preflight
from fasttrain.launch.torchrun import options
from fasttrain.models import create_model
from fasttrain.optim import build_optimizer
from tests.faults.harness import write_images


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    write_images(tmp_path / "train", 6)
    data = ["--data.train", str(tmp_path / "train"), "--data.val", "", "--data.builtin", "none"]
    return ["demo", *data, "--data.num-classes", "0", "--run.batch", "4", "--run.folder", str(tmp_path)]


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and all output."""
    status = 0
    try:
        main(("check", *arguments))
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_a_run_that_can_start(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    status, output = check(capsys, *arguments, "--processes", "2", "--nodes", "2")
    assert status == 0
    assert output == (
        "demo: cifar_resnet20, 18 images, 3 classes, 4 processes with 1 image each\n"
        f"a new run in {tmp_path / 'demo'}\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_the_digits_are_not_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output = check(capsys, "demo")
    assert status == 0
    assert "the digits, still to be written, 10 classes" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ("--processes 3", 2, "run.batch is 4; allowed: a multiple of the 3 processes"),
        ("--processes 2 --nodes 4", 2, "run.batch is 4; allowed: a multiple of the 8 processes"),
        ("--processes x", 2, "--processes is 'x'; allowed: 0 or more"),
        ("--nodes 0", 2, "--nodes is '0'; allowed: 1 or more"),
        ("--run.batch 20", 2, "larger than the data's 18 images"),
        ("--data.num-classes 2", 2, "data.num_classes is 2"),
        ("--data.train /nowhere", 3, "'/nowhere' does not exist"),
        ("--model.name resnet5000", 2, "resnet5000"),
        ("--model.weights /nowhere.pt", 4, "no checkpoint at /nowhere.pt"),
        ("--method.space 9,9,9", 2, "9"),
        ("--run.resume /nowhere.pt", 4, "no checkpoint at /nowhere.pt"),
        ("--run.folder /proc/none", 2, "run.folder: cannot write to '/proc/none/demo'"),
        pytest.param(
            "--run.device cuda",
            2,
            "run.device is 'cuda'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_mistakes_are_found(
    capsys: pytest.CaptureFixture[str], arguments: list[str], more: str, status: int, words: str
) -> None:
    got, output = check(capsys, *arguments, *more.split())
    assert words in " ".join(output.replace("│", " ").split())
    assert got == status


def test_the_run_folder_is_a_file(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "demo").touch()
    status, output = check(capsys, *arguments)
    assert (status, output) == (
        2,
        f"fasttrain: run.folder: cannot write to '{tmp_path / 'demo'}': Not a directory\n",
    )


def test_a_full_disk(
    capsys: pytest.CaptureFixture[str], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage._replace(free=4_000_000))
    status, output = check(capsys, *arguments)
    assert status == 2
    assert "is on a disk with 4 MB left" in output


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_the_size_of_a_checkpoint_is_foreseen(name: Literal["sgd", "adamw", "lamb"], tmp_path: Path) -> None:
    network = create_model("cifar_resnet20", 10)
    optim = Optim(name=name)
    optimizer = build_optimizer(network.parameters(), optim, torch.device("cpu"))
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    torch.save([network.state_dict(), optimizer.state_dict()], tmp_path / "x.pt")
    foreseen = preflight.checkpoint_bytes(network, Config(optim=optim))
    assert (tmp_path / "x.pt").stat().st_size == pytest.approx(foreseen, rel=0.1)


def test_torchrun_binds_to_numa_nodes_where_there_are_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/numactl")
    (tmp_path / "node0").mkdir()
    bound = "--numa-binding=node"
    assert bound not in options(8, tmp_path)
    (tmp_path / "node1").mkdir()
    assert bound in options(8, tmp_path)
    assert bound not in options(0, tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert bound not in options(8, tmp_path)


@pytest.mark.parametrize("launched", [True, False])
def test_a_launched_process_ends_with_its_parent(launched: bool) -> None:
    """Killed with its launcher, whereas one that was started by hand stays."""
    child = """
import os, sys, time
from fasttrain.launch.orphans import end_with_launcher
parent = os.getppid()
end_with_launcher()
print("ready", flush=True)
os.write(int(sys.argv[1]), b".")
while os.getppid() == parent:
    time.sleep(0.01)
time.sleep(0.5)  # the kernel's signal is on its way
print("alive", flush=True)
"""
    parent = """
import os, subprocess, sys
told, tell = os.pipe()
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(tell)], pass_fds=[tell])
os.read(told, 1)
os.kill(os.getpid(), 9)
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[1])}
    if launched:
        environment["LOCAL_RANK"] = "0"
    command = [sys.executable, "-c", parent, child]
    result = subprocess.run(command, env=environment, capture_output=True, timeout=240, check=False)
    assert result.returncode == -signal.SIGKILL
    assert b"ready" in result.stdout
    assert (b"alive" in result.stdout) == (not launched)


def test_another_process_writes_the_folder(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path
) -> None:
    """Several checks at once are no reason to stop: each node has its own."""
    folder = tmp_path / "demo"
    folder.mkdir()
    assert check(capsys, *arguments)[0] == 0
    held = lock(folder)
    assert held is not None
    status, output = check(capsys, *arguments)
    assert status == 2
    assert f"{folder} is being written by another process (process {os.getpid()} on " in output
    held.close()
    look(folder)
    with (folder / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert check(capsys, *arguments)[0] == 0
