"""The README's tables are those that the files in bench/results give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report, tables
from bench.__main__ import main
from fasttrain.errors import ConfigError


def test_the_readme_holds_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--check"]) == 0, capsys.readouterr().err
    names = {name for _, name, _, _ in report._BLOCK.findall(report.README.read_text())}
    assert {"demo", "step"} <= names <= set(tables.TABLES)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    (tmp_path / "gpu").mkdir()
    return tmp_path / "gpu"


def test_a_changed_file_shows(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        ("ct", "seconds", 2),
        ("ct", "seconds", 4),
        ("naive", "seconds", 9),
        ("stpp-r1:plain", "seconds", 6),
    ]
    (results / "step.csv").write_text("mode,metric,value\n" + "".join(f"{m},{k},{v}\n" for m, k, v in rows))
    readme = results / "README.md"
    readme.write_text("before\n<!-- bench:step gpu -->\nold\n<!-- /bench -->\nafter\n")
    assert main(["report", "--check", "--readme", str(readme)]) == 1
    assert "run python -m bench report" in capsys.readouterr().err
    assert "old" in readme.read_text()
    assert main(["report", "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench:step gpu -->\n| step |")
    assert (
        "| `stpp-r1:plain`: ST++, one downscaled batch, plain | 2.00 | 1.50 | - | - |\n<!-- /bench -->\nafter"
        in text
    )
    assert main(["report", "--check", "--readme", str(readme)]) == 0


def test_kernels_and_walk(results: Path) -> None:
    (results / "kernels.csv").write_text(
        "op,shape,implementation,metric,p50\n"
        "copy,1,torch,rate,4e12\n"
        "loss,2x3,eager,seconds,4e-3\nloss,2x3,triton,seconds,1e-3\nloss,2x3,triton,moved,2e9\n"
    )
    assert tables.kernels_table(results)[2:] == [["`loss`", "2x3", "1000.0", "4.00", "-", "2000", "50 %"]]
    (results / "walk.csv").write_text(
        "model,space,crop,batch,statistics,metric,value\n"
        "resnet50,default,224,8,main,ratio,6.5\nresnet50,default,224,8,main,block_ratio,7.25\n"
        "resnet50,default,224,8,reestimated,ratio,6\nresnet50,default,224,8,reestimated,block_ratio,7.25\n"
    )
    assert tables.walk_table(results)[2:] == [
        ["resnet50, default", "main", "6.50", "7.25", "224", "8"],
        ["resnet50, default", "reestimated", "6.00", "7.25", "224", "8"],
    ]


def test_saving_and_waiting(results: Path) -> None:
    header = "recipe,crop,batch,metric,value\n"
    saving = {"quiet": 0.5, "saving": 0.6, "snapshot": 0.03, "writing": 2, "delay": 20}
    lines = [f"net,224,8,{metric},{value}\n" for metric, value in saving.items()]
    (results / "save.csv").write_text(header + "".join(lines) + "net,224,8,snapshot,0.05\n")
    cells = ["`net`", "224, 8", "500", "600", "20.0 %", "40", "2.0"]
    assert tables.save_table(results)[2:] == [cells]
    waits = [("resident", 1), ("loaded", 1.5), ("waiting", 0.25), ("waiting", 0.5), ("cost", 33)]
    (results / "wait.csv").write_text(header + "".join(f"net,200,8,{m},{v}\n" for m, v in waits))
    assert tables.wait_table(results)[2:] == [["`net`", "200, 8", "1000", "1500", "0.38 %"]]


def test_a_comparison_shows_what_ties(results: Path) -> None:
    def row(name: str, main: float, subnets: float) -> dict[str, object]:
        own = {key: {"mean": mean, "deviation": 0.5} for key, mean in (("main", main), ("subnets", subnets))}
        rest = {"time": 1.25, "memory": 1, "deviation": {"mean": 2.5, "deviation": 0.25}, "seeds": 3}
        return {"recipe": name, **rest, **own}

    ties = {"main": ["ct", "st"], "subnets": ["st"]}
    text = json.dumps({"rows": [row("ct", 98.25, 50), row("st", 98, 93)], "ties": ties})
    (results / "compare.json").write_text(text)
    assert tables.compare_table(results)[2:] == [
        ["`ct`", "1.25", "1.00", "**98.25 ± 0.50**", "50.00 ± 0.50", "2.50 ± 0.25", "3"],
        ["`st`", "1.25", "1.00", "**98.00 ± 0.50**", "**93.00 ± 0.50**", "2.50 ± 0.25", "3"],
    ]


def write_study(folder: Path) -> None:
    lines = ["bench,method,seed,metric,value,model,images,crop,epochs"]
    for seed in (0, 1, 2):
        for method, main_top1 in (("ct", 80), ("stpp-r1", 84)):
            own = {"main": main_top1 + seed, "subnets_mean": 60, "subnets_deviation": 5, "subnets_worst": 40}
            lines += [f"study,{method},{seed},{k},{v},net,100,32,9" for k, v in own.items()]
    (folder / "study.csv").write_text("\n".join(lines) + "\n")


def test_study_and_checks(results: Path) -> None:
    write_study(results)
    assert tables.study_table(results)[2:] == [
        ["*net, 100 images of 32 px, 9 epochs*", "", "", "", "", ""],
        ["`ct`", "81.00 ± 1.00", "60.00 ± 0.00", "5.00 ± 0.00", "40.00 ± 0.00", "3"],
        ["`stpp-r1`", "85.00 ± 1.00", "60.00 ± 0.00", "5.00 ± 0.00", "40.00 ± 0.00", "3"],
    ]
    (results / "checks.csv").write_text(
        "op,check,results,worst,holds\nloss,a,3,0.25,1\nloss,b,2,0.5,0\nstep,ct,1,0.125,1\n"
    )
    assert tables.checks_table(results)[2:] == [
        ["`loss`", "1 of 2", "5", "0.50"],
        ["`step`", "1 of 1", "1", "0.12"],
    ]


def test_plots_stand_beside_their_files(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And are the same bytes when drawn again."""
    pytest.importorskip("matplotlib")
    write_study(results)
    rows = "ct,seconds,2\nct,flops,4\nst,seconds,3\nst,flops,6\n"
    (results / "step.csv").write_text(f"mode,metric,value\n{rows}")
    readme = results / "README.md"
    readme.write_text("nothing")
    assert main(["report", "--readme", str(readme)]) == 0
    pictures = {path.name: path.read_bytes() for path in results.glob("*.png")}
    assert set(pictures) == {"step.png", "study.png"}
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 5000 for picture in pictures.values())
    assert "study.png" in capsys.readouterr().out
    assert main(["report", "--readme", str(readme)]) == 0
    assert {path.name: path.read_bytes() for path in results.glob("*.png")} == pictures


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_table_without_its_end_costs_no_text(
    results: Path, check: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "step.csv").write_text("mode,metric,value\nct,seconds,2\n")
    readme = results / "README.md"
    text = "<!-- bench:step gpu -->\nprose\n<!-- bench:step gpu -->\n<!-- /bench -->\n"
    readme.write_text(text)
    assert main(["report", "--readme", str(readme), *check]) == 2
    assert "2 tables start, 1 end" in capsys.readouterr().err
    assert readme.read_text() == text


@pytest.mark.parametrize(
    "damaged",
    [b"", b"mode,metric,value\n", b"mode,metric,value\nct,seconds,2\nct,sec", b"\xff\xfe", b"a,b\n1,2\n"],
)
def test_damaged_results_are_named_and_the_readme_stays(
    results: Path, damaged: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "step.csv").write_bytes(damaged)
    readme = results / "README.md"
    readme.write_text("<!-- bench:step gpu -->\nold\n<!-- /bench -->\n")
    assert main(["report", "--readme", str(readme)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "step" in line
    assert "old" in readme.read_text()


def test_mistakes_are_named(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="table is 'nix'; allowed: step, step-224"):
        report.render("<!-- bench:nix gpu -->\n<!-- /bench -->")
    with pytest.raises(ConfigError, match=r"table step nowhere: .*step\.csv: No such file"):
        report.render("<!-- bench:step nowhere -->\n<!-- /bench -->")
    with pytest.raises(ConfigError, match="No such file"):
        report.main(["--readme", str(tmp_path / "none.md")])
