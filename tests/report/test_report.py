"""The report of a run: what it says of whole, broken and unfinished folders, and that it is one safe page."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fasttrain.cli import main
from fasttrain.config import to_dict
from fasttrain.errors import ConfigError
from fasttrain.recipes import RECIPES, published_top1, recipe
from fasttrain.report import write_report
from fasttrain.report.drawing import MOST, thin
from fasttrain.trainer import train
from tests.report.runs import EVALUATION, SUBNETS, TRAIN, write_run
from tests.test_trainer import configure, write_images

Page = Callable[..., str]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """The page of a run that `write_run` writes with these changes."""

    def make(name: str = "run", **changes: Any) -> str:
        return write_report([write_run(tmp_path / name, **changes)]).read_text()

    return make


class Words(HTMLParser):
    """A page's rows as lists of cells, its other text, its attributes; tags must be closed in order."""

    VOID = ("meta", "path", "use", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if "style" not in self.open:
            self.text += data

    def row(self, name: str) -> list[str]:
        """The first row of that name, without it."""
        return next(row[1:] for row in self.rows if row[0] == name)

    def has_row(self, name: str) -> bool:
        return any(row[0] == name for row in self.rows)


def test_what_was_published_and_reached(page: Page) -> None:
    words = Words(page(config=to_dict(recipe("rn50-ct-200")), records=[*TRAIN, EVALUATION | {"top1": 76.25}]))
    assert words.row("last Top-1, %") == ["76.25"]
    assert words.row("published for the recipe, Top-1, %") == ["76.7"]
    assert words.row("difference, points") == ["-0.45"]
    assert "no target" not in words.text
    assert "The recipe rn50-ct-200 as it is" in words.text


def test_a_changed_recipe_is_no_target(page: Page) -> None:
    base = recipe("rn50-stpp-a1")
    run = replace(base.run, epochs=3, name="mine", log_every=5)
    changed = replace(base, run=run, optim=replace(base.optim, lr=0.1))
    words = Words(page(config=to_dict(changed)))
    assert "Its settings are not the recipe's (optim.lr, run.epochs)" in words.text
    assert "but optim.lr = 0.1, run.epochs = 3, run.log_every = 5." in words.text


def test_published_figures_are_those_of_the_recipes_words() -> None:
    assert published_top1("rn50-stpp-a1") == published_top1("rn50-stpp-a1-published") == 80.5
    assert published_top1("rn50-ct-200") == 76.7
    assert published_top1("demo") is None
    assert published_top1("nix") is None
    assert all((published_top1(name) or 80) > 60 for name in RECIPES)


def test_speed_waiting_and_energy(page: Page) -> None:
    """Weighted by time: 20 steps of 100 ms at 640 images/s, then 20 of 300 ms at 213.3; 100 and 300 W."""
    records = [
        TRAIN[0]
        | {"global_step": 20, "step_ms": 100, "images_per_second": 640, "gpu_watts": 100, "data_wait": 0.4},
        TRAIN[0]
        | {"global_step": 40, "step_ms": 300, "images_per_second": 640 / 3, "gpu_watts": 300, "data_wait": 0},
    ]
    words = Words(page(records=records))
    assert words.row("training images") == ["2,560"]
    assert words.row("training time, evaluations left out") == ["8s"]
    assert words.row("images/s") == ["320.0"]
    assert words.row("waiting for images, %") == ["10.0"]
    assert words.row("the same, worst report, %") == ["40.0"]
    assert words.row("energy, J per image") == [f"{(2 * 100 + 6 * 300) / 2560:.3f}"]
    assert words.row("energy, kWh") == ["0.000556"]
    assert words.row("power of all GPUs, mean, W") == ["250"]
    assert "Energy of the GPU boards alone, known in 100 % of the time" in words.text


def test_absent_energy_is_told(page: Page) -> None:
    words = Words(page())
    assert "No energy was measured (no driver here)" in words.text
    assert not words.has_row("energy, kWh")


def test_subnets(page: Page, tmp_path: Path) -> None:
    words = Words(page(records=[*TRAIN, EVALUATION, SUBNETS]))
    assert words.row("run") == [
        *("batch-norm statistics", "subnets", "mean, %", "deviation", "best, %", "worst, %", "from")
    ]
    own = ["their own", "4", "80.00", "7.07", "90.00 (3-3-3)", "70.00 (1-1-1)", "metrics.jsonl"]
    assert [row[1:] for row in words.rows if row[0] == "run" and "4" in row] == [own]
    assert words.row("3-3-3") == ["9", "90.00"]
    assert "No subnets were evaluated" in Words(page("other")).text


def test_subnets_of_an_evaluation(page: Page, tmp_path: Path) -> None:
    """What `fasttrain evaluate RUN --output RUN/verdict.json` writes is found."""
    report = {name: SUBNETS[name] for name in ("statistics", "depths", "top1")}
    folder = write_run(tmp_path / "run")
    (folder / "verdict.json").write_text(
        json.dumps({"path": "x", "main": {"top1": 91.0}, "subnets": [report]})
    )
    words = Words(write_report([folder]).read_text())
    assert any(row[-1] == "verdict.json" for row in words.rows)
    assert words.has_row("2-3-1")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"config.json": None}, "There is no config.json"),
        ({"config.json": "{"}, "The file config.json is damaged: it is not JSON"),
        ({"config.json": "[1]"}, "The file config.json is damaged: it holds no object"),
        ({"config.json": '{"recipe": "demo", "run": {"epochs": "many"}}'}, "run.epochs = many"),
        ({"environment.json": None}, "There is no environment.json"),
        ({"status.json": None}, "has not said how it stands"),
        ({"status.json": '{"state": "running", "pid": "x", "host": 3}'}, "run"),
        ({"status.json": '{"state": "done", "global_step": "x"}'}, "values of another kind"),
        ({"status.json": '{"state": "failed", "message": "\\ud800 no text"}'}, " no text"),
        ({"metrics.jsonl": None}, "There is no metrics.jsonl"),
        ({"metrics.jsonl": '{"kind": "train", "loss'}, "1 of 1 lines of metrics.jsonl are damaged"),
        (
            {"metrics.jsonl": '{"kind": "train", "global_step": 5, "loss": null}\n'},
            "not finite in 1 of 1 reports",
        ),
        (
            {"metrics.jsonl": '{"kind": "train", "global_step": "x", "loss": {"a": 1}}\n'},
            "Nothing was recorded",
        ),
        (
            {"metrics.jsonl": '{"kind": ["subnets"], "depths": 3}\n{"kind": "subnets", "depths": [[1]]}\n'},
            "No subnets",
        ),
        ({"metrics.jsonl": "\x00\n[]\n3\n"}, "3 of 3 lines"),
        (
            {"metrics.jsonl": f'{{"kind": "train", "global_step": 5, "step_ms": 1{"0" * 400}}}\n'},
            "Nothing was recorded",
        ),
    ],
)
def test_gaps_are_told(tmp_path: Path, broken: dict[str, str | None], words: str) -> None:
    folder = write_run(tmp_path / "run")
    for name, text in broken.items():
        (folder / name).unlink()
        if text is not None:
            (folder / name).write_text(text)
    assert words in Words(write_report([folder]).read_text()).text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "running"}, "run is still running: this is its state so far"),
        ({"state": "running", "pid": 2**22 + 1}, "run should be running, but its process is gone or silent"),
        ({"state": "preempted", "exit_status": 75, "message": "saved"}, "Ended with status 75: saved"),
        ({"state": "failed", "exit_status": 6, "message": "out of memory"}, "run failed, epoch 2 of 14"),
    ],
)
def test_how_a_run_stands(page: Page, status: dict[str, Any], words: str) -> None:
    own = {"host": platform.node(), "pid": os.getpid(), "epoch": 2, "global_step": 40}
    assert words in Words(page(status=own | status)).text


def test_resumes_and_checkpoints(page: Page) -> None:
    log = "2026-01-02T03:04:05Z resumed from runs/run/checkpoints/step-00000020.pt at step 20\nx at step 3\n"
    words = Words(page(log=log))
    assert "Resumed at step 20 (2026-01-02 03:04:05 UTC)" in words.text
    assert words.row("step-00000040.pt") == ["40", "2", "1.5", "0123456789abcdef"]


def test_nothing_in_a_folder_becomes_markup(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script><img src=http://x.invalid/y>&$a_1$ \x1b\x00 é'
    config = to_dict(recipe("demo")) | {"recipe": evil}
    config["data"]["train"] = evil
    folder = write_run(
        tmp_path / '<b onclick="x">&$a$',
        config=config,
        environment={evil: evil, "variables": {evil: evil}, "gpus": [evil]},
        status={"state": evil, "message": evil, "exit_status": evil, "time": evil},
        records=[*TRAIN, EVALUATION, SUBNETS | {"statistics": evil}],
    )
    text = write_report([folder, folder]).read_text()
    words = Words(text)
    assert evil in words.text
    assert text.isascii()
    assert "<script" not in text
    assert "<img" not in text
    assert "<b onclick" not in text
    assert not any(name.startswith("on") for name, _ in words.attributes)


def test_a_page_asks_nobody(page: Page) -> None:
    """No address in any attribute or style, a policy that forbids all of them, each identity once."""
    text = page(records=[*TRAIN, EVALUATION, SUBNETS])
    words = Words(text)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert not re.search(r"https?://|@import|<link|<script|<iframe", text)
    for name, value in words.attributes:
        assert name.split(":")[-1] not in ("src", "href") or str(value).startswith("#")
    identities = [value for name, value in words.attributes if name == "id"]
    assert len(identities) == len(set(identities)) > 50
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert referred <= set(identities)
    labels = [value for name, value in words.attributes if name == "aria-label"]
    assert len(labels) == text.count("<svg") == text.count('role="img"') >= 5
    assert "Loss over the steps of run. From 2.3 to 1.2 at step 40." in labels


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / side / "demo", config=to_dict(recipe(name)))
        for side, name in (("a", "demo"), ("b", "demo-ct"))
    ]
    words = Words(write_report(folders, tmp_path / "both.html").read_text())
    assert words.row("recipe") == ["demo", "demo-ct"]
    assert words.row("method.name") == ["stimulative", "common"]
    assert "demo (1)" in words.text
    assert "demo (2)" in words.text
    assert not (folders[0] / "report.html").exists()


def test_long_runs_stay_small(page: Page) -> None:
    points = [(float(x), float(x % 7)) for x in range(20_001)]
    thinned = thin(points)
    assert 0.9 * MOST / 2 < len(thinned) <= MOST
    assert thinned[0] == (25.0, pytest.approx(3, abs=0.2))
    assert thin(points[:3]) == points[:3]
    assert thin([]) == []
    many = [TRAIN[0] | {"global_step": step} for step in range(1, 8001)]
    assert len(page(records=many)) < 1_000_000


def test_a_real_run(tmp_path: Path) -> None:
    """What training writes is what the report reads."""
    write_images(tmp_path / "images" / "train", 8, 0)
    write_images(tmp_path / "images" / "val", 4, 1)
    config = configure(tmp_path / "images", tmp_path, run={"epochs": 1}, evaluation={"subnets": 3})
    summary = train(config)
    words = Words(write_report([Path(summary.folder)]).read_text())
    assert summary.main is not None
    assert words.row("last Top-1, %") == [f"{summary.main.top1:.2f}"]
    assert words.row("subnets, mean Top-1, %") == [
        f"{summary.subnets[0].mean:.2f} ± {summary.subnets[0].deviation:.2f}"
    ]
    assert words.row("images/s") == [f"{summary.images_per_second:,.1f}"]
    assert words.row("training images") == ["24"]
    assert words.has_row("GFLOPs per image that ran")
    assert words.row("step-00000003.pt")[:2] == ["3", "1"]
    assert "Ended with status 0 (done)" in words.text
    assert words.text.lower().count("there is no") == 0


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = 0
    try:
        main(["report", *arguments])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    assert run(capsys, str(folder)) == (0, f"report: {folder}/report.html\n")
    assert run(capsys, str(folder), str(folder), "-o", str(tmp_path / "x.html"))[0] == 0
    assert (tmp_path / "x.html").read_text().startswith("<!DOCTYPE html>")
    os.mkfifo(tmp_path / "pipe")
    for arguments, message in (
        ((), "RUN"),
        ((str(tmp_path),), f"RUN is {tmp_path}; allowed: a run's folder"),
        ((str(folder), "/nowhere"), "RUN is /nowhere; allowed: a run's folder"),
        ((str(folder), "-o", "/nowhere/x.html"), "-o is /nowhere/x.html; allowed: a file in a folder"),
        ((str(folder), "-o", str(tmp_path)), "allowed: a file in a folder"),
        ((str(folder), "-o", str(folder / "config.json")), "a run's own file; allowed: another file"),
        ((str(folder), "-o", str(tmp_path / "pipe")), "allowed: a file in a folder"),
        (("/nowhere",), "RUN is /nowhere; allowed: a run's folder"),
        (("x" * 5000,), "allowed: a run's folder"),
        ((str(folder), "--fast"), "--fast"),
    ):
        status, words = run(capsys, *arguments)
        assert status == 2
        assert message in words


def test_without_matplotlib(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"needs matplotlib: pip install 'fasttrain\[report\]'"):
        page()
