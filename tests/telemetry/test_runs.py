"""`fasttrain runs`: how runs stand, by their folders alone."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fasttrain.cli import main
from fasttrain.telemetry.records import parse
from fasttrain.telemetry.runs import SILENCE, list_runs

HERE = {"host": platform.node(), "pid": os.getpid()}


def make_run(folder: Path, name: str, status: dict[str, Any], *records: dict[str, Any]) -> Path:
    """A run's folder with a status and metrics."""
    path = folder / name
    (path / "checkpoints").mkdir(parents=True)
    (path / "status.json").write_text(json.dumps({"time": "2026-01-02T03:04:05Z", **status}))
    (path / "config.json").write_text(json.dumps({"run": {"epochs": 9}}))
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def train(step: int, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "epoch": step // 10, "global_step": step, "images_per_second": 100.0} | values


def evaluation(step: int, top1: float) -> dict[str, Any]:
    return {"kind": "evaluation", "epoch": step // 10, "global_step": step, "top1": top1}


@pytest.fixture
def gone() -> int:
    """A process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_states(tmp_path: Path, gone: int) -> None:
    running = {"state": "running", **HERE, "epoch": 0, "global_step": 0}
    make_run(tmp_path, "alive", running)
    make_run(tmp_path, "killed", running | {"pid": gone})
    make_run(tmp_path, "elsewhere", running | {"host": "another", "pid": gone})
    for name, host in (("silent", "another"), ("silent-here", HERE["host"])):
        path = make_run(tmp_path, name, running | {"host": host})
        for file in [*path.iterdir(), path]:
            os.utime(file, (time.time() - SILENCE - 60,) * 2)
    for state in ("done", "failed", "interrupted", "preempted"):
        make_run(tmp_path, state, running | {"state": state, "pid": gone})
    (tmp_path / "no-run").mkdir()
    states = {run.name: run.state for run in list_runs(tmp_path)}
    assert states == {
        **{"alive": "running", "killed": "dead", "elsewhere": "running"},
        **{"silent": "dead", "silent-here": "dead"},
        **{state: state for state in ("done", "failed", "interrupted", "preempted")},
    }


def test_progress_comes_from_the_metrics(tmp_path: Path) -> None:
    then = datetime.now(UTC) - timedelta(seconds=30)
    last = train(25, time=then.strftime("%Y-%m-%dT%H:%M:%SZ"), eta_seconds=100.0, images_per_second=640.0)
    records = (train(10), evaluation(10, 70.5), evaluation(20, 69.0), train(20), last)
    path = make_run(tmp_path, "group/live", {"state": "running", **HERE, "epoch": 0}, *records)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "evaluation", "top1": 99')  # half a line
    (run,) = list_runs(tmp_path)
    assert (run.name, run.epoch, run.epochs, run.step) == ("group/live", 2, 9, 25)
    assert (run.top1, run.images_per_second, run.ended) == (70.5, 640, "")
    assert run.eta_seconds == pytest.approx(70, abs=3)


def test_the_table_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = {"state": "done", "epoch": 9, "global_step": 1234}
    make_run(tmp_path, "first", done, train(10), evaluation(10, 70.5))
    main(["runs", str(tmp_path)])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "state", "epoch"]
    assert line.split() == ["first", "done", "9/9", "1,234", "70.50", "%", "100", "2026-01-02", "03:04:05"]
    main(["runs", str(tmp_path), "--json"])
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["name"], told["state"], told["top1"], told["eta_seconds"]) == ("first", "done", 70.5, None)
    assert told["ended"] == "2026-01-02T03:04:05Z"


SPOILED = [
    {"pid": "x"},
    {"pid": 10**30},
    {"pid": float("inf")},
    {"state": ["running"]},
    {"state": "[/red]\n"},
    {"global_step": "x"},
    {"global_step": None},
    {"epoch": {}},
    {"time": 5},
    {"eta_seconds": "x"},
    {"eta_seconds": float("nan")},
    {"images_per_second": [1]},
    {"loss": "x"},
    {"lr": 10**400},
    {"top1": "x"},
    {"kind": []},
]


@pytest.mark.parametrize("values", SPOILED, ids=str)
def test_spoiled_values_hide_no_run(
    tmp_path: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    status = {"state": "running", **HERE, "epoch": 0, "global_step": 0}
    records = (train(10), evaluation(10, 70.5))
    make_run(tmp_path, "sound", status, *records)
    path = make_run(
        tmp_path, "spoiled", status | values, *records, train(20) | values, evaluation(20, 1) | values
    )
    main(["runs", str(tmp_path)])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", "sound", "spoiled"]
    main(["watch", str(path), "--once"])
    assert "spoiled" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"[" * 100_000, b'{"run": []}', b"null"])
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "status.json"])
def test_a_spoiled_file_hides_no_run(
    tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_run(tmp_path, "spoiled", {"state": "done"}, train(10))
    (path / name).write_bytes(content + b"\n")
    main(["runs", str(tmp_path)])
    assert "spoiled" in capsys.readouterr().out
    main(["watch", str(path), "--once"])
    assert "spoiled" in capsys.readouterr().out


def test_names_are_shown_as_they_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("[red]a", "b\n\x1b[2Jb", "\udcff"):
        make_run(tmp_path, name, {"state": "done"})
    main(["runs", str(tmp_path)])
    lines = capsys.readouterr().out.encode().decode().splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["[red]a", "b??[2Jb", "\\udcff"]


def test_no_folder_and_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", str(tmp_path)])
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    with pytest.raises(SystemExit) as end:
        main(["runs", str(tmp_path / "none")])
    assert end.value.code == 2
    assert "none; allowed: a folder" in capsys.readouterr().err


def test_subnets_records_keep_each_top1() -> None:
    record = {"kind": "subnets", "global_step": 4, "depths": [[1], [2]], "top1": [70.0, 80.0]}
    assert parse(json.dumps(record)) == record
    assert "top1" not in parse(json.dumps(record | {"top1": 70.0}))
    assert "top1" not in parse(json.dumps(record | {"kind": "evaluation"}))
