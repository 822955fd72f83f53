"""The README's tables are those that the files in bench/results give."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import report
from bench.__main__ import main
from fasttrain.errors import ConfigError


def test_the_readme_holds_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--check"]) == 0, capsys.readouterr().err
    names = {name for _, name, _, _ in report._BLOCK.findall(report.README.read_text())}
    assert {"demo", "step"} <= names <= set(report.TABLES)


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
    assert report.kernels_table(results)[2:] == [["`loss`", "2x3", "1000.0", "4.00", "-", "2000", "50 %"]]
    (results / "walk.csv").write_text(
        "model,space,crop,batch,metric,value\n"
        "resnet50,default,224,8,ratio,6.5\nresnet50,default,224,8,block_ratio,7.25\n"
    )
    assert report.walk_table(results)[2:] == [["resnet50, default", "6.50", "7.25", "224", "8"]]


def test_mistakes_are_named(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="table is 'nix'; allowed: step, walk"):
        report.render("<!-- bench:nix gpu -->\n<!-- /bench -->")
    with pytest.raises(ConfigError, match=r"table step nowhere: .*step\.csv: No such file"):
        report.render("<!-- bench:step nowhere -->\n<!-- /bench -->")
    with pytest.raises(ConfigError, match="No such file"):
        report.main(["--readme", str(tmp_path / "none.md")])
