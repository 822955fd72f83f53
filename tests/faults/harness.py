"""Faults in real processes: started with a time limit, and what they leave.

A test takes the fixture `arena` (conftest.py). `arena.train(...)` starts one process per rank over gloo on a
tiny network; `arena.start(command)` starts anything else (torchrun, launch.sh). What goes wrong is told by
`fault` and `save_fault`, which inject/sitecustomize.py brings about inside the trainer's processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
INJECT = Path(__file__).parent / "inject"
TAG = "FASTTRAIN_TEST_TAG"
"""Environment variable by which a test knows its processes and all that they started."""


def rest_heavy(*values: Any, first: int = 1) -> list[Any]:
    """Values of a parametrized test: the first are in the default run, the others are heavy."""
    marked = (value if isinstance(value, tuple) else (value,) for value in values[first:])
    return [*values[:first], *(pytest.param(*value, marks=pytest.mark.heavy) for value in marked)]


@dataclass
class Job:
    """Processes that were started together, and where their output goes."""

    processes: list[subprocess.Popen[bytes]]
    outputs: list[Path]
    limit: float

    def wait(self) -> list[int]:
        """Exit statuses (a signal's is negative).

        Raises:
            AssertionError: it took longer than the limit; all output is in the message.
        """
        end = time.monotonic() + self.limit
        for process in self.processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"still running after {self.limit} s:\n{self.output}") from None
        return [process.returncode for process in self.processes]

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to some of the processes, or to all."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            self.processes[rank].send_signal(number)

    @property
    def output(self) -> str:
        """What all of them have printed, one after the other."""
        return "\n".join(f"[{i}]\n{p.read_text(errors='replace')}" for i, p in enumerate(self.outputs))


class Arena:
    """A folder of a test, and the processes it started."""

    def __init__(self, folder: Path) -> None:
        """Nothing runs yet."""
        self.folder, self.tag, self.jobs = folder, uuid.uuid4().hex, 0

    def start(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, *, limit: float = 240
    ) -> Job:
        """Start one command; `environment` is added to this process's, faults included (`faulty`)."""
        return self._start([(command, dict(environment or {}))], limit)

    def train(
        self,
        *arguments: str,
        world: int = 2,
        fault: str = "",
        save_fault: str = "",
        tiny: str = "1",
        forget: str = "",
        environment: Mapping[str, str] | None = None,
        limit: float = 240,
    ) -> Job:
        """Start `fasttrain train ARGUMENTS` as `world` processes over gloo, torchrun left out."""
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
        common |= {"LOCAL_WORLD_SIZE": str(world), **faulty(fault, save_fault, tiny, forget)}
        common |= environment or {}
        command = [sys.executable, "-m", "fasttrain", "train", *arguments]
        ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
        return self._start([(command, rank) for rank in ranks], limit)

    def _start(self, commands: Sequence[tuple[Sequence[str], dict[str, str]]], limit: float) -> Job:
        self.jobs += 1
        processes, outputs = [], []
        for index, (command, extra) in enumerate(commands):
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
            environment |= {"PYTHONPATH": str(ROOT), **extra, TAG: self.tag}
            outputs.append(self.folder / f"output-{self.jobs}-{index}.txt")
            with outputs[-1].open("wb") as file:
                processes.append(
                    subprocess.Popen(
                        command,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
                )
        return Job(processes, outputs, limit)

    def assert_clean(self, patience: float = 60) -> None:
        """No process of this test is left after `patience` seconds, and no unfinished file."""
        end = time.monotonic() + patience
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left, f"processes left: {left}"
        assert not list(self.folder.rglob("*.tmp"))

    def processes(self) -> list[int]:
        """All living processes that this test started, themselves or through others."""
        mark = f"{TAG}={self.tag}".encode()
        return [process for process in _all_processes() if mark in _environment(process)]

    def stop(self) -> None:
        """Kill what is left."""
        for process in self.processes():
            os.kill(process, signal.SIGKILL)


def _all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _environment(process: int) -> bytes:
    """What it was started with; nothing of a process that is gone, a zombie's, or another user's."""
    try:
        return Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return b""


def faulty(fault: str = "", save_fault: str = "", tiny: str = "1", forget: str = "") -> dict[str, str]:
    """The environment in which the trainer's processes have the tiny network and a fault.

    Args:
        fault: `kill:1:5`: what, on which rank (`*`: all), before which global step; see sitecustomize.py.
        save_fault: `kill:half:2`: what, at which point of which save.
        tiny: `plain`: without batch norm and dropout.
        forget: what a resume leaves out: random, loader, ema, statistics.
    """
    faults = {"FAULT": fault, "SAVE_FAULT": save_fault, "FORGET": forget}
    return {"PYTHONPATH": f"{INJECT}:{ROOT}", "TINY": tiny, **faults}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    """`count` JPEGs of 32x32 pixels for each of 3 classes: a class is a direction of stripes."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    for label, (across, down) in enumerate(((1, 0), (0, 1), (1, 1))):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(count):
            wave = np.sin((across * x + down * y) * random.uniform(0.4, 0.9) + random.uniform(0, 6))
            noisy = 128 + 90 * wave[..., None] + random.normal(0, 12, (32, 32, 3))
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            image.save(folder / f"class{label}" / f"{index}.jpg")


def run_arguments(images: Path, folder: Path) -> list[str]:
    """`demo` on such images: 2 epochs of 5 steps of 8 images, two steps to a report, saved every other step
    and at the end of each epoch; its folder is `folder / "run"`.
    """
    return [
        "demo",
        *("--data.train", str(images / "train"), "--data.val", str(images / "val"), "--data.builtin", "none"),
        *("--data.num-classes", "0", "--data.threads", "1", "--optim.ema", "0.5", "--optim.lr", "0.02"),
        *("--evaluation.every", "1", "--evaluation.subnets", "0", "--evaluation.batch", "2"),
        *("--run.epochs", "2", "--run.batch", "8", "--run.log-every", "2", "--run.save-steps", "2"),
        *("--run.device", "cpu", "--run.precision", "fp32", "--run.folder", str(folder), "--run.name", "run"),
    ]


def metrics(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The lines of one kind in a run's metrics.jsonl."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def losses(run: Path) -> dict[int, tuple[str, ...]]:
    """Each logged step's losses and learning rate as `float.hex()`; none may be there twice."""
    found: dict[int, tuple[str, ...]] = {}
    for line in metrics(run):
        assert line["global_step"] not in found
        names = ("loss", "loss_max", "main_loss", "subnet_loss", "train_top1", "gradient_norm", "lr")
        found[line["global_step"]] = tuple(float(line[name]).hex() for name in names)
    return found


def checkpoints(run: Path) -> list[Path]:
    """A run's complete training checkpoints, oldest first."""
    folder = run / "checkpoints"
    return sorted(path for path in folder.glob("step-*.pt") if path.with_suffix(".json").exists())


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of what the newest checkpoint holds: network, optimizer, weight average."""
    state = torch.load(checkpoints(run)[-1], weights_only=True)
    return {part: digest(state[part]) for part in ("network", "optimizer", "ema")}


def assert_same(run: Path, whole: Path) -> None:
    """Equal losses of each logged step, evaluations, weights, momentum and averages, to the bit."""
    assert losses(run) == losses(whole)
    kept = ("global_step", "top1", "top5", "loss", "images")
    ours, theirs = (
        [[line[name] for name in kept] for line in metrics(folder, "evaluation")] for folder in (run, whole)
    )
    assert ours == theirs
    assert digests(run) == digests(whole)


def digest(value: Any) -> str:
    """SHA-256 of nested dictionaries, sequences, tensors and plain values."""
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value, key=str):
                sha.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for each in value:
                add(each)
        elif isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            sha.update(repr(value).encode())

    add(value)
    return sha.hexdigest()
