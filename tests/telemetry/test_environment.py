"""What is recorded of the environment, and what never is."""

from __future__ import annotations

import json
import subprocess

import pytest

from fasttrain.cli import main
from fasttrain.telemetry.environment import commit, environment, redact, variables

CANARY = "canary-3141592653"


def test_secrets_are_hidden() -> None:
    secret = ("WANDB_API_KEY", "aws_secret_access_key", "HF_TOKEN", "DB_PASSWORD", "GOOGLE_CREDENTIALS")
    hidden = redact(dict.fromkeys((*secret, "PLAIN"), CANARY))
    assert [name for name, value in hidden.items() if value == CANARY] == ["PLAIN"]


def test_only_known_variables_are_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_API_KEY", "MY_OWN", "NCCL_SECRET_TOKEN", "XNCCL_DEBUG"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    shown = variables()
    assert {"NCCL_DEBUG": "WARN", "CUDA_VISIBLE_DEVICES": "3"}.items() <= shown.items()
    assert shown["NCCL_SECRET_TOKEN"] == "(hidden)"
    assert "MY_OWN" not in shown
    assert "XNCCL_DEBUG" not in shown
    assert CANARY not in json.dumps(environment())
    main(["doctor"])
    out = capsys.readouterr().out
    assert "NCCL_DEBUG=WARN" in out
    assert CANARY not in out


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() == ""


def test_git_may_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], *, timeout: float, **options: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert commit() == ""
