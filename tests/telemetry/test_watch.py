"""`fasttrain watch`: a file that grows, curves in characters, the end."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from fasttrain.cli import main
from fasttrain.telemetry.curves import plot
from fasttrain.telemetry.records import Records

from .test_runs import HERE, evaluation, make_run, train

RECORDS = [
    *(train(step, loss=3.0 - step / 50, train_top1=step / 2.0, lr=0.1) for step in range(10, 60, 10)),
    evaluation(50, 42.25) | {"loss": 1.5},
]


def test_half_written_lines_wait(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = Records(path)
    records.read()
    assert records.all == []
    with path.open("w", buffering=1) as file:
        file.write('{"kind": "train", "a": 1}\n{"kind": "tr')
        file.flush()
        records.read()
        assert [record["a"] for record in records.all] == [1]
        file.write('ain", "a": 2}\nnonsense\n[1]\n')
        file.flush()
        records.read()
    assert [record["a"] for record in records.of("train")] == [1, 2]
    records.read()
    assert len(records.all) == 2


def test_a_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    """A resume drops the records of the steps that it takes again."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"a": {number}}}\n' for number in range(5)))
    records = Records(path)
    records.read()
    other = tmp_path / "other"
    other.write_text('{"a": 0}\n{"a": 1}\n{"a": 7}\n{"a": 8}\n{"a": 9}\n{"a": 10}\n')
    other.replace(path)
    records.read()
    assert [record["a"] for record in records.all] == [0, 1, 7, 8, 9, 10]


def test_a_line_from_corner_to_corner() -> None:
    lines = plot([[(0.0, 0.0), (10.0, 1.0)]], 14, 3).plain.splitlines()
    assert [line.rstrip() for line in lines] == ["        1   ⡠⠊", "        0 ⡠⠊", "          0 10"]


def test_points_that_are_none_leave_no_trace() -> None:
    nan = float("nan")
    assert "no values yet" in plot([[(1.0, nan)]], 40, 5).plain
    assert plot([[(0.0, 1.0), (1.0, nan), (2.0, 3.0)]], 40, 5) == plot([[(0.0, 1.0), (2.0, 3.0)]], 40, 5)
    flat = plot([[(7.0, 2.0)]], 40, 6)
    assert len(flat.plain.splitlines()) == 6
    assert sum(0x2800 < ord(character) <= 0x28FF for character in flat.plain) == 1


def test_curves_have_colours_of_their_own() -> None:
    text = plot([[(0.0, 0.0), (1.0, 0.0)], [(0.0, 1.0), (1.0, 1.0)]], 40, 5)
    assert {str(span.style) for span in text.spans} >= {"cyan", "magenta"}


def test_many_points_of_a_column_are_one() -> None:
    noisy = [(float(step), float(step % 2)) for step in range(10_000)]
    upper = plot([noisy], 40, 9).plain.splitlines()[0]
    assert not any(0x2800 < ord(character) <= 0x28FF for character in upper[12:-2])


def test_one_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run(tmp_path, "mine", {"state": "running", **HERE}, *RECORDS)
    main(["watch", str(path), "--once"])
    out = capsys.readouterr().out
    head, *frame = out.splitlines()
    assert head.startswith("mine running: epoch 5/9, step 50, loss 2.0000, best Top-1 42.25 %, 100 images/s")
    for title in ("loss training validation", "Top-1, % training validation", "images/s", "learning rate"):
        assert title in out
    assert max(map(len, frame)) == 100
    assert "⠤" in out or "⠉" in out


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["watch", str(tmp_path)])
    assert end.value.code == 2
    assert "allowed: a run's folder" in capsys.readouterr().err


def test_a_terminal_shows_the_run_until_it_ends(tmp_path: Path) -> None:
    path = make_run(tmp_path, "mine", {"state": "running", **HERE}, *RECORDS)
    control, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "LINES": "30", "TERM": "xterm"}
    command = [sys.executable, "-m", "fasttrain", "watch", str(path)]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    try:
        shown = b""
        while b"step 50" not in shown:  # it watches
            shown += os.read(control, 65536)
        with (path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(train(60, loss=1.0)) + "\n")
        while b"step 60" not in shown:  # it follows
            shown += os.read(control, 65536)
        (path / "status.json").write_text(json.dumps({"state": "done", "epoch": 9, "global_step": 90}))
        with suppress(OSError):  # the terminal's other end is closed
            while data := os.read(control, 65536):
                shown += data
        assert process.wait(timeout=240) == 0
    finally:
        process.kill()
        process.wait()
        os.close(control)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert shown.count(b"\x1b[?1049h") == shown.count(b"\x1b[?1049l") == 1, "the screen is given back"
    assert "mine done: epoch 9/9, step 90" in text[text.rindex("mine") :]
