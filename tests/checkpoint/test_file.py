"""Checkpoints: whole or not at all, read without running code, refused with one clear message."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from fasttrain import checkpoint
from fasttrain.errors import CheckpointError
from fasttrain.models import create_model


def contents(**changes: Any) -> dict[str, Any]:
    """What a training checkpoint holds, in small."""
    return {name: kind() for name, kind in checkpoint.CONTENTS.items()} | changes


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save(path, contents(network={"w": torch.arange(3.0)}, best=float("-inf"), classes=["a", "b"]))
    state = checkpoint.load(path)
    assert torch.equal(state["network"]["w"], torch.arange(3.0))
    assert state["classes"] == ["a", "b"]
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


def test_a_failed_save_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, contents(value=1))
    with pytest.raises(AttributeError):
        checkpoint.save(path, {"value": lambda: None})
    assert checkpoint.load(path)["value"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        checkpoint.save(tmp_path / "file" / "last.pt", {})


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return (os.system, (self.command,))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, how: str) -> None:
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    evil = {"format": checkpoint.FORMAT, "network": Evil(f"touch {canary}")}
    if how == "torch":
        torch.save(evil, path)
    else:
        path.write_bytes(pickle.dumps(evil))
    for load in (checkpoint.load, lambda p: checkpoint.load_weights(create_model("resnet18", 2), p)):
        with pytest.raises(CheckpointError, match=r"evil\.pt"):
            load(path)
    assert not canary.exists()


def test_damaged_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load(path)
    checkpoint.save(path, contents(network={"w": torch.randn(100)}))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        checkpoint.load(path)
    checkpoint.save(path, contents(network={"w": torch.randn(1000)}))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(CheckpointError, match="damaged: its checksum is wrong"):
        checkpoint.load(path)
    torch.save({"w": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a fasttrain checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", checkpoint.CONTENTS)
def test_a_checkpoint_without_one_of_its_parts_is_damaged(tmp_path: Path, name: str) -> None:
    path = tmp_path / "last.pt"
    state = contents()
    del state[name]
    checkpoint.save(path, state)
    with pytest.raises(CheckpointError, match=f"damaged: it holds no {name}"):
        checkpoint.load(path)


@pytest.mark.parametrize("state", [{1: torch.zeros(1)}, {"fc.weight": 3}, {}])
def test_state_dicts_of_another_kind_are_refused(tmp_path: Path, state: dict) -> None:
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        checkpoint.load_weights(create_model("resnet18", 2), path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_timm_weights_load(tmp_path: Path, suffix: str) -> None:
    reference = timm.create_model("resnet18", num_classes=5)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": reference.state_dict()}, path)
    else:
        save_file(reference.state_dict(), path)
    network = create_model("resnet18", 5)
    checkpoint.load_weights(network, path)
    for name, value in reference.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(create_model("resnet18", 5).state_dict(), path)
    with pytest.raises(CheckpointError, match="another architecture"):
        checkpoint.load_weights(create_model("resnet34", 5), path)
    with pytest.raises(CheckpointError, match=r"fc\.weight has shape \(5, 512\)"):
        checkpoint.load_weights(create_model("resnet18", 6), path)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("conv1.weight", lambda value: value.to(torch.int8), "int8; allowed: floating point"),
        ("conv1.weight", lambda value: value.bool(), "bool; allowed: floating point"),
        ("bn1.weight", lambda value: value.to_sparse(), "sparse_coo; allowed: a dense tensor"),
        ("bn1.weight", lambda value: value.to("meta"), r"empty \(meta\); allowed: a dense tensor"),
        ("bn1.num_batches_tracked", lambda value: value - 5, "is -5; allowed: counts, 0 or more"),
        ("bn1.num_batches_tracked", lambda value: value + 0.5, "float32 that torch.int64 does not hold"),
        ("bn1.num_batches_tracked", lambda value: (value - 2**63).to(torch.uint64), "is -9223372"),
    ],
)
def test_values_of_another_kind_are_refused(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    network = create_model("cifar_resnet20", 5)
    state = network.state_dict()
    path = tmp_path / "weights.pt"
    torch.save(state | {name: change(state[name])}, path)
    with pytest.raises(CheckpointError, match=rf"does not fit: {name} .*{words}"):
        checkpoint.load_weights(network, path)
