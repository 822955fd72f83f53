"""TensorBoard and Weights & Biases, by stand-ins: what they get, where they go on, what they need."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fasttrain.config import Config, Run
from fasttrain.errors import ConfigError
from fasttrain.telemetry.sinks import TensorBoard, check_sinks, numbers, open_sinks

CANARY = "canary-2718281828"


class FakeWandb(ModuleType):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished: list[int] = []
        self.Settings = SimpleNamespace

    def init(self, **options: Any) -> FakeWandb:
        self.started.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.finished.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = Run(tensorboard=True) if name == "tensorboard" else Run(wandb="mine")
    words = rf"run\.{name} is .*; allowed with the extra {name}, .*pip install -e '\.\[{name}\]'"
    with pytest.raises(ConfigError, match=words):
        check_sinks(run)
    check_sinks(Run())


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(ConfigError, match=r"run\.wandb is 'mine'; allowed with a key in the environment"):
        check_sinks(Run(wandb="mine"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_sinks(Run(wandb="mine"))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    check_sinks(Run(wandb="mine"))


def test_a_resumed_run_is_the_same_run_on_weights_and_biases(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    for step in (0, 40):
        (sink,) = open_sinks(Config(run=Run(wandb="mine")), tmp_path, step)
        sink.write({"train/loss": 2.0}, step + 20)
        sink.close("done" if step else "failed")
    first, second = wandb.started
    assert first["project"] == "mine"
    assert first["config"]["run"]["wandb"] == "mine"
    assert first["dir"] == str(tmp_path)
    assert first["id"] == second["id"] == (tmp_path / "wandb.id").read_text()
    assert second["resume"] == "allow"
    assert [step for step, _ in wandb.logged] == [20, 60]
    assert wandb.finished == [1, 0]
    assert CANARY not in str(wandb.started)


def test_tensorboard_goes_on_behind_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Writer:
        def __init__(self, folder: str, **options: Any) -> None:
            calls.append((folder, options["purge_step"]))

        def add_scalar(self, *values: Any) -> None:
            calls.append(values)

        def close(self) -> None:
            calls.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    (sink,) = open_sinks(Config(run=Run(tensorboard=True)), tmp_path, 40)
    sink.write({"train/loss": 2.0, "train/lr": 0.1}, 60)
    sink.close("done")
    assert calls == [(str(tmp_path), 41), ("train/loss", 2.0, 60), ("train/lr", 0.1, 60), "closed"]


def test_tensorboard_itself_shows_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, value in ((0, 1.0), (2, 2.0)):  # the first start dies at step 4, its checkpoint was step 2
        sink = TensorBoard(tmp_path, begin)
        for step in range(begin + 1, begin + 5 - begin // 2):
            sink.write({"train/loss": value}, step)
        sink.writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    wanted = [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == wanted


def test_numbers_of_a_record() -> None:
    record = {"loss": 2.5, "steps": 3, "mfu": None, "name": "x", "ok": True, "top1": [1.0]}
    flat = numbers("train", record | {"gpu_slowdowns": {"sw_power_cap": 0.5}})
    assert flat == {"train/loss": 2.5, "train/steps": 3, "train/gpu_slowdowns/sw_power_cap": 0.5}
