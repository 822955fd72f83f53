"""Lines to the console and log.txt."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fasttrain.config import Config, Run
from fasttrain.telemetry.folder import RunFolder
from fasttrain.telemetry.log import Log


def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """log.txt keeps what nobody reads."""
    read, write = os.pipe()
    folder = RunFolder(Config(run=Run(folder=str(tmp_path), name="a")))
    folder.path.mkdir()
    with os.fdopen(write, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        log = Log(folder)
        log.line("one")
        assert os.read(read, 100) == b"one\n"
        os.close(read)
        log.line("two")
        log.line("three")
    lines = (folder.path / "log.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["one", "two", "three"]
