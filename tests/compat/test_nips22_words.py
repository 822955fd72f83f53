"""Errors of `fasttrain nips22` speak of the flags that were given, not of fields that nobody typed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from fasttrain.compat.nips22 import Flags, in_flags
from fasttrain.compat.nips22.words import _FIELDS, FLAGS
from fasttrain.errors import ConfigError, DataError, OutOfMemoryError
from tests.test_cli import run


def test_each_flag_and_each_field_exists() -> None:
    own = {f"--{field.name}" for field in fields(Flags)} | {"--data", "half of --batch_size"}
    assert set(FLAGS.values()) <= own
    assert set(FLAGS) <= _FIELDS


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "runs/x exists and run.resume is 'never'; allowed: --run.resume auto to go on with it, or "
            "another --run.name",
            "runs/x exists and --resume is not given; allowed: --resume to go on with it, or another --exp",
        ),
        ("run.folder: cannot write to 'a/run.name'", "--exp: cannot write to 'a/--exp'"),
        (
            "cannot resume with other settings: optim.lr is 0.1, was 0.2; allowed: the run's own (train "
            "RUN/config.json), or another --run.name for another run",
            "cannot resume with other settings: --lr is 0.1, was 0.2; allowed: the run's own (train "
            "RUN/config.json), or another --exp for another run",
        ),
        ("run.batch is 7; allowed: a multiple", "--batch_size is 7; allowed: a multiple"),
        ("a lower --optim.weight-decay", "a lower --weight_decay"),
        ("image data.tar/x.jpg is bad", "image data.tar/x.jpg is bad"),
        (
            "lower --run.batch, raise --run.accumulate",
            "lower --batch_size, raise --run.accumulate (run.accumulate: of the fasttrain train command that "
            "--print-command prints)",
        ),
    ],
)
def test_fields_are_said_as_flags(message: str, told: str) -> None:
    for kind in (ConfigError, DataError, OutOfMemoryError):
        error = kind(message)
        error.speaks = False
        ours = in_flags(error)
        assert type(ours) is kind
        assert str(ours) == told
        assert ours.speaks is False


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--train_crop_size 9999", "--train_crop_size is 9999; allowed: 1 to 4096"),
        ("--epoch 0", "--epoch is 0; allowed: 1 to"),
        ("--lr -1", "--lr is -1"),
        ("--Temp 0", "--Temp is 0"),
        ("--val_resize_size 3", "--val_resize_size is 3; allowed: 224 to"),
        ("--multi_Snet 999999", "--multi_Snet is 999999"),
    ],
)
def test_refused_values_are_said_as_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "nips22", "--data", "x", *flags.split())
    assert status == 2
    assert told in err
    assert not any(f"{section}." in err for section in ("data", "optim", "method", "run", "model"))


def test_a_name_that_is_none_is_said_of_exp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "nips22", "--exp", "runs/a/..", "--data", "x")
    assert status == 2
    assert "--exp is '..'; allowed: a plain folder name" in err
