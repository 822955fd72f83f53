"""Checkpoints that are not what was written, or cannot be: rows 5 to 9 and 23 of the matrix."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain import build, checkpoint, flops
from fasttrain.checkpoint.archive import Archive
from fasttrain.cli import main
from fasttrain.errors import CheckpointError
from fasttrain.models import StagedNetwork
from tests.faults.harness import Arena, assert_same, checkpoints, losses, run_arguments
from tests.networks import tiny_resnet

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    """The tiny network with batch norm and dropout in this process, too."""

    def create(name: str, num_classes: int) -> StagedNetwork:
        network = tiny_resnet((2, 2), classes=num_classes).float()
        network.drop_rate = 0.2
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "create_model", create)
        patch.setattr(flops, "create_model", create)
        flops.meta_network.cache_clear()
        yield
    flops.meta_network.cache_clear()


def train(*arguments: str) -> int:
    """Exit status of the command, run in this process."""
    try:
        main(["train", *arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


@pytest.fixture(scope="module")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, in this process, that was left alone."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train(*run_arguments(images, folder)) == 0
    return folder / "run"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))


def spoil_manifest(path: Path) -> None:
    path.with_suffix(".json").write_text('{"sha2')


@pytest.mark.parametrize("damage", [truncate, flip, spoil_manifest])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    arguments: list[str], tmp_path: Path, uninterrupted: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*arguments, "--run.max-steps", "7") == 0
    newest = checkpoints(tmp_path / "run")[-1]
    assert newest.name == "step-00000007.pt"
    damage(newest)
    capsys.readouterr()
    assert train(*arguments) == 0
    said = capsys.readouterr().out
    assert "warning:" in said
    assert str(newest) in said
    assert "step-00000006.pt at step 6" in said
    assert_same(tmp_path / "run", uninterrupted)


def test_a_checkpoint_without_its_manifest_is_put_by(
    arguments: list[str], tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*arguments, "--run.max-steps", "7") == 0
    newest = checkpoints(tmp_path / "run")[-1]
    newest.with_suffix(".json").unlink()
    content = newest.read_bytes()
    capsys.readouterr()
    assert train(*arguments) == 0
    said = capsys.readouterr().out
    assert f"warning: {newest} has no manifest" in said
    assert "step-00000006.pt at step 6" in said
    assert "has no manifest" in (tmp_path / "run" / "log.txt").read_text()
    assert newest.with_name("step-00000007.pt.without-manifest").read_bytes() == content
    assert_same(tmp_path / "run", uninterrupted)


def test_without_a_sound_checkpoint_nothing_is_started(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*arguments, "--run.max-steps", "5") == 0
    for path in checkpoints(tmp_path / "run"):
        flip(path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert train(*arguments) == 4
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "no checkpoint of the 2 in" in said[0]
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/config.json"])
def test_something_in_the_way_is_told_before_the_first_step(
    arguments: list[str], tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    if place.endswith(".json"):
        path.mkdir()
    else:
        path.touch()
    assert train(*arguments) == 2
    assert "cannot write to" in capsys.readouterr().err
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_place_that_nobody_can_write_is_told(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*arguments, "--run.folder", "/proc/fasttrain") == 2  # root, too
    assert "cannot write to '/proc/fasttrain" in capsys.readouterr().err


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return (os.system, (self.command,))


@pytest.mark.parametrize("flag", ["--run.resume", "--model.weights"])
def test_code_in_a_checkpoint_is_not_run(
    arguments: list[str], tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evil, canary = tmp_path / "evil.pt", tmp_path / "canary"
    torch.save({"format": checkpoint.FORMAT, "network": Evil(f"touch {canary}")}, evil)
    assert train(*arguments, flag, str(evil)) == 4
    assert "evil.pt" in capsys.readouterr().err
    assert not canary.exists()
    assert not (tmp_path / "run").exists()


def test_code_in_the_run_folders_checkpoint_is_not_run(arguments: list[str], tmp_path: Path) -> None:
    """Also where somebody wrote a manifest to it."""
    folder, canary = tmp_path / "run" / "checkpoints", tmp_path / "canary"
    evil = folder / "step-00000001.pt"
    written = checkpoint.save(evil, {"network": Evil(f"touch {canary}")})
    checkpoint.save_manifest(evil, written, {"step": 1})
    assert train(*arguments) == 4
    assert not canary.exists()
    with pytest.raises(CheckpointError):
        checkpoint.load(evil)


def test_a_full_disk_ends_no_run(arena: Arena, arguments: list[str], tmp_path: Path) -> None:
    """From step 3 to step 7 the kernel refuses to write large files."""
    job = arena.train(*arguments, world=1, fault="full:0:3,room:0:7")
    assert job.wait() == [0], job.output
    assert "warning: cannot write the checkpoint" in job.output
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000008.pt", "step-00000010.pt"]
    for path in checkpoints(tmp_path / "run"):
        checkpoint.load(path)


@pytest.mark.heavy
def test_the_final_save_failing_is_told(arena: Arena, arguments: list[str], tmp_path: Path) -> None:
    job = arena.train(*arguments, world=2, fault="full:0:7")
    assert job.wait() == [4, 4], job.output
    assert job.output.count("fasttrain: ") == 1
    kept = [int(path.stem.removeprefix("step-")) for path in checkpoints(tmp_path / "run")]
    assert kept in ([5, 6], [4, 5])  # the sixth step's may have been under way when the disk filled
    for path in checkpoints(tmp_path / "run"):
        checkpoint.load(path)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_status"]) == ("failed", 4)


def test_later_checkpoints_that_are_damaged_do_not_push_the_sound_ones_out(
    arguments: list[str], tmp_path: Path
) -> None:
    """Nor do files of other names, which stay."""
    assert train(*arguments, "--run.max-steps", "8", "--run.keep", "3") == 0
    folder = tmp_path / "run" / "checkpoints"
    for path in checkpoints(tmp_path / "run")[1:]:
        flip(path)
    damaged = (folder / "step-00000008.pt").read_bytes()
    for name in ("step-mine.pt", "step-zzz.pt", "step-zzz.json"):
        (folder / name).write_text("somebody's")
    assert train(*arguments, "--run.max-steps", "6") == 0
    for name in ("step-00000005.pt", "step-00000006.pt"):
        checkpoint.load(folder / name)
    for name in ("step-mine.pt", "step-zzz.pt", "step-zzz.json"):
        assert (folder / name).read_text() == "somebody's"
    assert (folder / "step-00000008.pt.damaged").read_bytes() == damaged


def test_a_save_that_failed_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the checkpoint may have its place, and the weights beside it none."""

    def full(*_: object) -> None:
        raise CheckpointError("no space")

    archive = Archive(tmp_path)
    state = {**{name: kind() for name, kind in checkpoint.CONTENTS.items()}, "network": {"w": torch.ones(2)}}
    archive.save(1, state, {}, best=False)
    monkeypatch.setattr(Archive, "_save_weights", full)
    with pytest.raises(CheckpointError, match="no space"):
        archive.save(2, state, {}, best=False)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == [
        "step-00000001.json",
        "step-00000001.pt",
    ]


def test_checkpoints_are_ordered_by_their_number(tmp_path: Path) -> None:
    for name in ("step-99999999", "step-100000000", "step-100000000-before"):
        (tmp_path / f"{name}.pt").touch()
        (tmp_path / f"{name}.json").touch()
    names = [path.stem for path in Archive(tmp_path).complete()]
    assert names == ["step-100000000", "step-100000000-before", "step-99999999"]


@pytest.mark.parametrize("manifest", ["[" * 100_000, "[]", '{"sha256": null}', '{"sha256": 5}', "\udcff"])
def test_a_manifest_without_a_hash_is_damage(tmp_path: Path, manifest: str) -> None:
    path = tmp_path / "step-00000001.pt"
    checkpoint.save(path, {})
    path.with_suffix(".json").write_text(manifest, errors="surrogateescape")
    with pytest.raises(CheckpointError, match="is damaged: its"):
        checkpoint.read(path)


@pytest.mark.parametrize("records", [b"\xff\xfe\0\n", b"[" * 100_000 + b"\n"])
def test_records_that_a_disk_spoiled_end_no_resume(
    arguments: list[str], tmp_path: Path, records: bytes
) -> None:
    assert train(*arguments, "--run.max-steps", "2") == 0
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(records + path.read_bytes())
    assert train(*arguments, "--run.max-steps", "4") == 0
    assert sorted(losses(tmp_path / "run")) == [2, 4]


@pytest.mark.parametrize("place", ["metrics.jsonl", "status.json", ".status.json.tmp"])
def test_something_in_the_way_of_a_resume_is_told(
    arguments: list[str], tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / place).mkdir(parents=True)
    assert train(*arguments) == 2
    assert "cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize(("window", "told"), [("0:1", "warning: trace: File"), ("5:9", "step 5 of 2")])
def test_a_trace_that_cannot_be_is_told(
    arguments: list[str], tmp_path: Path, window: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trace").touch()
    assert train(*arguments, "--run.max-steps", "2", "--run.profile", window) == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_name_that_no_file_system_takes_is_told(
    arguments: list[str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, *arguments, "--run.name", "x" * 300])
    assert end.value.code == 2
    assert "run.folder: cannot write to" in capsys.readouterr().err


def test_a_full_disk_below_the_output_ends_no_run(arena: Arena, arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fasttrain", "train", *arguments, "--run.max-steps", "2"]
    job = arena.start(["sh", "-c", 'exec "$@" > /dev/full', "sh", *command], {})
    assert job.wait() == [0], job.output
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "warning: the output ends" in log
    assert "done: " in log
