"""The command line: every mistake is one message and the right exit status; what the README shows parses."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from fasttrain.cli import main
from fasttrain.config import Data, Optim
from fasttrain.errors import DataError, ImageError
from fasttrain.recipes import RECIPES

ROOT = Path(__file__).parent.parent


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one command in this process."""
    status = 0
    try:
        main(arguments)
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("", 2, "usage"),
        ("fly", 2, "unknown command 'fly'; allowed: train"),
        ("train", 2, "train needs a recipe; allowed: rn50-ct-200"),
        ("train nix", 2, "unknown recipe 'nix'; allowed: rn50-ct-200"),
        ("train none.json", 2, "cannot read the configuration none.json"),
        ("train demo --optim.speed 3", 2, "--optim.speed"),
        ("train demo --optim.lr -1", 2, "optim.lr is -1"),
        ("train demo --optim.lr nan", 2, "optim.lr is nan"),
        ("train demo --optim.lr fast", 2, "fast"),
        ("train demo --method.name magic", 2, "magic"),
        ("train demo --data.crop 16", 2, "at most data.crop = 16"),
        ("train rn50-ct-200", 2, "data.train is empty"),
        ("train rn50-ct-200 --data.train /nowhere/at/all", 3, "/nowhere/at/all"),
        ("show", 2, "show needs a recipe"),
        ("recipes all", 2, "takes no arguments"),
        ("data", 2, "allowed: data check DIR"),
        ("data fetch x", 2, "allowed: data check DIR"),
        ("data demo", 2, "allowed: data demo DIR"),
        ("data check", 2, "DIR"),
        ("data check /nowhere", 3, "'/nowhere' does not exist"),
        ("data check /nowhere --leave-out-bad", 2, "--leave-out-bad without -o"),
        ("data check /nowhere -o /nowhere/at/all", 2, "allowed: a file in a folder that exists"),
        ("data check /nowhere --classes /none", 2, "--classes /none cannot be read"),
        ("data check /nowhere --root s3://x", 2, "--root is s3://x without -o"),
        ("data check /nowhere -o .", 2, "-o is .; allowed: a file"),
        ("data check /nowhere -o /dev/null", 2, "-o is /dev/null; allowed: a file"),
        (f"data check /nowhere -o {5000 * 'n'}", 2, "name too long; allowed: a file in a folder"),
        ("data pack /nowhere", 2, "--output"),
        ("data pack /nowhere -o /x --shards 1", 3, "'/nowhere' does not exist"),
        ("data pack /nowhere -o /x --shards 1 --quality 96", 2, "--quality is 96; allowed: 1 to 95"),
        (
            "data pack /nowhere -o /x --shards 1 --shuffle 9999999999",
            2,
            "--shuffle is 9999999999; allowed: 0 to",
        ),
        ("show rn50-stpp-a1 --method.sizes 9:8", 2, "--method.sizes is 9:8; allowed: LOW:HIGH"),
        ("show rn50-stpp-a1 --method.sizes 8:9:0", 2, "--method.sizes is 8:9:0"),
        ("show rn50-stpp-a1 --optim.lr 8:9", 2, "8:9"),
        ("demo --fast", 2, "allowed: demo [DIR]"),
        ("doctor now", 2, "takes no arguments"),
        ("evaluate", 2, "RUN"),
        ("evaluate /nowhere", 4, "no checkpoint in /nowhere/checkpoints"),
        ("evaluate /nowhere --subnets -2", 2, "--subnets -2"),
        ("evaluate /nowhere --statistics mine", 2, "mine"),
        ("export", 2, "--output"),
        ("export /nowhere --format tar -o x.pt", 2, "tar"),
        ("export /nowhere --format timm -o x.pt", 4, "no checkpoint in /nowhere/checkpoints"),
    ],
)
def test_mistakes_are_named(
    capsys: pytest.CaptureFixture[str], command: str, status: int, words: str
) -> None:
    got, out, err = run(capsys, *command.split())
    assert got == status
    text = " ".join((out + err).replace("│", " ").split())
    assert words in text
    assert "Traceback" not in text


def test_ranges_of_sides_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    for given, sizes in (
        ("64:66", [64, 65, 66]),
        ("96:120:10", [96, 106, 116]),
        ("32 64:66 99", [32, 64, 65, 66, 99]),
    ):
        _, out, _ = run(capsys, "show", "rn50-stpp-a1", "--method.sizes", *given.split(), "--run.batch", "64")
        assert json.loads(out)["method"]["sizes"] == sizes


def test_a_real_process_says_one_line_and_exits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fasttrain", "train", "rn50-ct-200", "--data.train", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path)
    assert result.returncode == 3
    assert len(result.stderr.strip().splitlines()) == 1
    assert str(tmp_path) in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "told"), [(DataError, False), (ImageError, True)])
def test_what_one_process_meets_is_told_by_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[DataError], told: bool
) -> None:
    def meet(path: Path) -> None:
        raise error("image x cannot be decoded")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("fasttrain.demo.run_demo", meet)
    status, _, err = run(capsys, "demo")
    assert (status, "image x" in err) == (3, told)


def test_recipes_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "recipes")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(RECIPES)
    status, out, _ = run(
        capsys, "show", "rn50-stpp-a1", "--optim.lr", "0.4", "--resume", "--method.sizes", "96", "128"
    )
    assert status == 0
    shown = json.loads(out)
    assert shown["optim"]["lr"] == 0.4
    assert shown["run"]["resume"] == "auto"
    assert shown["method"]["sizes"] == [96, 128]


def test_the_command_answers_signals_before_it_imports_the_rest() -> None:
    """As `python -m fasttrain` does; tests/guards/test_signals.py has the signals."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"fasttrain": "fasttrain.__main__:main"}


def test_doctor_tells_what_would_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    subjects = [line.split("  ")[0] for line in out.splitlines()]
    for subject in ("Python", "torch", "CUDA", "DALI", "triton", "NVML", "apex", "chosen here"):
        assert subject in subjects


def test_doctor_tells_the_other_apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fasttrain import nvidia_apex

    for name in ("apex", "apex.optimizers"):  # looking for the second imports the first: forgotten afterwards
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        del sys.modules[name]
    assert nvidia_apex.found() == "not installed (optional)"
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert nvidia_apex.found().startswith("warning: another package of that name")
    (tmp_path / "apex" / "optimizers.py").touch()
    importlib.invalidate_caches()
    assert nvidia_apex.found() == "NVIDIA's"


def test_links_and_import_names() -> None:
    for name in ("kernels", "pipelines"):
        link = ROOT / "fasttrain" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name
        result = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert f"import fasttrain.{name}" in result.stderr


def readme_commands() -> list[str]:
    """Lines of the README's indented or fenced blocks that call fasttrain or the bench."""
    blocks = re.findall(
        r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE
    )
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(\S*/)?(fasttrain|launch\.sh|python -m bench) ", line)]


def test_the_readmes_recipes_and_overrides_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [shlex.split(line, comments=True) for line in readme_commands()]
    shown = [words for words in commands if words[1] in ("train", "show")]
    assert len(shown) >= 2
    for words in shown:
        status, _, err = run(capsys, "show", *words[2:])
        assert status == 0, err


@pytest.mark.parametrize("section", [Data, Optim])
def test_the_readmes_tables_hold_every_field(section: type[Data | Optim]) -> None:
    prefix = f"{section.__name__.lower()}."
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `{prefix}")]
    named = {name.removeprefix(prefix) for row in rows for name in re.findall(r"`([a-z.-]+)`", row)}
    assert {field.name.replace("_", "-") for field in fields(section)} <= named


def test_the_readmes_data_commands_parse(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the demo's: there is no data, which is another error than a wrong command line."""
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for line in readme_commands() if "fasttrain data" in line]
    assert len(commands) >= 5
    for words in commands:
        status, _, err = run(capsys, *words[1:])
        assert status == 3, err


def test_the_readmes_commands_on_trained_networks_parse(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no checkpoint, which is another error than a wrong command line."""
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for line in readme_commands()]
    taken = [words[1:] for words in commands if words[1] in ("evaluate", "export")]
    assert {words[0] for words in taken} == {"evaluate", "export"}
    for words in taken:
        status, _, err = run(capsys, *words)
        assert status == 4, err


def test_the_launcher_checks_first(tmp_path: Path) -> None:
    def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(ROOT / "launch.sh"), *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            cwd=tmp_path,
            env={
                **{"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "HOME": str(tmp_path)},
                "PYTHONPATH": str(ROOT),
            },
        )

    assert "usage: ./launch.sh" in launch("--help").stdout
    assert launch().returncode == 2
    wrong = launch("demo", "--optim.lr", "-1")
    assert wrong.returncode == 2
    assert wrong.stderr.count("optim.lr is -1") == 1
    missing = launch("rn50-ct-200", "--data.train", str(tmp_path / "none"))
    assert missing.returncode == 3
