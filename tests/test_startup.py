"""What a command does first: closed streams, terminals that cannot show a name, odd variables; and how little
it imports before it has to.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fasttrain.guards import signals
from fasttrain.startup import begin, expanded, importing
from tests.test_cli import ROOT, run

ALONE = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(ROOT)}
"""An environment without what the tests' own has."""


def shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash, in which $PY is this interpreter."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**ALONE, "PY": sys.executable, **variables},
        capture_output=True,
        timeout=120,
        check=False,
    )


def make_run(folder: Path, name: str) -> Path:
    """The least that counts as a run."""
    path = folder / name
    path.mkdir(parents=True)
    (path / "status.json").write_text('{"state": "done", "epoch": 1, "global_step": 3}')
    return path


CLOSED = ("<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-")


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_streams_are_opened_on_the_null_device(tmp_path: Path, closed: str) -> None:
    """What is opened next has a number of its own, children have the streams too, and printing works."""
    script = (
        "import os, subprocess, sys\n"
        "from fasttrain.streams import open_streams\n"
        "open_streams()\n"
        "file = os.open('found', os.O_CREAT | os.O_WRONLY)\n"
        "print('out'); print('err', file=sys.stderr); sys.stdout.flush(); sys.stdin.read(0)\n"
        "child = subprocess.run([sys.executable, '-c', 'import sys; print(sys.stdout and sys.stderr)'])\n"
        "os.write(file, f'{file > 2} {child.returncode}'.encode())\n"
    )
    done = shell(f'"$PY" -c "$SCRIPT" {closed}', tmp_path, SCRIPT=script)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found").read_text() == "True 0"


def test_what_a_library_writes_to_a_closed_stderr_is_no_signal(tmp_path: Path) -> None:
    """Ten is a newline and SIGUSR1."""
    script = (
        "import os\n"
        "from fasttrain.streams import open_streams\n"
        "open_streams()\n"
        "from fasttrain.guards import signals\n"
        "with signals.caught() as caught:\n"
        "    caught.defer()\n"
        "    for number in (1, 2): os.write(number, bytes([10, 15, 2]))\n"
        "open('found', 'w').write(str(int(caught.request)))\n"
    )
    done = shell('"$PY" -c "$SCRIPT" >&- 2>&-', tmp_path, SCRIPT=script)
    assert done.returncode == 0
    assert (tmp_path / "found").read_text() == str(int(signals.Request.NONE))


@pytest.mark.parametrize("closed", CLOSED)
def test_a_command_without_streams_ends_as_with_them(tmp_path: Path, closed: str) -> None:
    for words, status in (("recipes", 0), ("fly", 2), ("data check /nowhere", 3), ("--help", 0)):
        assert shell(f'"$PY" -m fasttrain {words} {closed}', tmp_path).returncode == status, words


@pytest.mark.parametrize("closed", CLOSED)
def test_the_launcher_without_streams_ends_as_with_them(tmp_path: Path, closed: str) -> None:
    assert shell(f'bash "{ROOT}/launch.sh" --help {closed}', tmp_path).returncode == 0
    assert shell(f'bash "{ROOT}/launch.sh" {closed}', tmp_path).returncode == 2
    found = shell(f'RESTARTS=x bash "{ROOT}/launch.sh" demo {closed}', tmp_path)
    assert found.returncode == 2


@pytest.mark.heavy
@pytest.mark.parametrize("command", ["-m bench step --bacth 3", "-m fasttrain.launch.torchrun"])
def test_other_programs_without_streams(tmp_path: Path, command: str) -> None:
    status = 2 if "bench" in command else 0
    assert shell(f'"$PY" {command} <&- >&- 2>&-', tmp_path).returncode == status


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_names_that_a_terminal_cannot_show_are_escaped(tmp_path: Path, variables: dict[str, str]) -> None:
    make_run(tmp_path, "αβγ")
    make_run(tmp_path, os.fsdecode(b"caf\xe9"))
    for words in ("runs .", "runs . --json", "watch αβγ --once", "watch $(printf 'caf\\xe9') --once"):
        done = shell(f'"$PY" -m fasttrain {words}', tmp_path, **variables)
        assert done.returncode == 0, done.stderr
        assert b"\\u" in done.stdout, words
    done = shell('"$PY" -m fasttrain watch δ', tmp_path, **variables)
    assert done.returncode == 2
    assert b"RUN is \\u" in done.stderr


@pytest.mark.parametrize("columns", ["0", "", "00"])
def test_a_terminal_of_no_columns_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    make_run(tmp_path, "one")
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    _, out, _ = run(capsys, "runs", str(tmp_path))
    assert out.splitlines()[1].split()[:2] == ["one", "done"]
    assert "COLUMNS" not in os.environ


def test_columns_of_some_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    begin([])
    assert os.environ["COLUMNS"] == "90"


@pytest.mark.parametrize("words", ["recipes", "show demo", "train demo", "doctor"])
def test_without_docstrings_one_message(tmp_path: Path, words: str) -> None:
    done = shell(f'"$PY" -m fasttrain {words}', tmp_path, PYTHONOPTIMIZE="2")
    assert done.returncode == 2
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert "Python runs with optimization 2 (-OO or PYTHONOPTIMIZE)" in line
    assert "allowed: 0 or 1" in line


def test_a_leading_tilde_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/one")
    for word, whole in (
        ("~/runs", "/home/one/runs"),
        ("~", "/home/one"),
        ("--run.folder=~/runs", "--run.folder=/home/one/runs"),
        ("-o=~/x y", "-o=/home/one/x y"),
        ("--data.train", "--data.train"),
        ("a~/b", "a~/b"),
        ("--run.name=a=~/b", "--run.name=a=~/b"),
        ("~nobody-has-this-name/x", "~nobody-has-this-name/x"),
        ("", ""),
    ):
        assert expanded(word) == whole
    root = os.path.expanduser("~root")
    assert expanded("--val=~root/x") == f"--val={root}/x"


def test_nothing_is_collected_while_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leaves is looked at no more; once it is there, nothing is changed."""
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    monkeypatch.delitem(sys.modules, "torch")
    try:
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


HEAVY = ("torch", "torchvision", "timm", "nvidia.dali", "triton", "matplotlib", "numpy", "safetensors")
"""Packages whose import takes a command's first second, and more."""

LIGHT = (
    *("", "--help", "--version", "fly", "recipes", "show demo", "show nix", "train", "train nix"),
    *("train demo --help", "train demo --optim.lr x", "check demo --optim.speed 3", "evaluate --help"),
    *("export --help", "compare --help", "compare demo", "analyze", "analyze kll x", "runs --help"),
    *("runs .", "watch one --once", "watch x", "report --help", "data", "data check --help"),
    *("data pack --help", "nips22 --help", "nips22 --fly", "nips22 --exp x --print-command"),
)


def test_what_needs_no_network_imports_no_torch(tmp_path: Path) -> None:
    """Else it would take seconds. All in one process, since none of them may."""
    make_run(tmp_path, "one")
    script = (
        "import sys\n"
        "from fasttrain.cli import main\n"
        f"for command in {LIGHT!r}:\n"
        "    try:\n"
        "        main(command.split())\n"
        "    except SystemExit:\n"
        "        pass\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    if heavy:\n"
        "        sys.exit(f'{command}: {heavy}')\n"
    )
    done = shell('"$PY" -c "$SCRIPT"', tmp_path, SCRIPT=script)
    assert done.returncode == 0, done.stderr.decode().splitlines()[-1]


def test_training_imports_what_it_needs_alone(tmp_path: Path) -> None:
    """No plots, exports, trackers, nor the launcher's torchrun."""
    unneeded = (
        *("matplotlib", "onnx", "onnxscript", "onnxruntime", "tensorboard", "torch.utils.tensorboard"),
        *("wandb", "sklearn", "scipy", "pandas", "torch.distributed.run", "fasttrain.report"),
        *("fasttrain.analysis", "fasttrain.export", "fasttrain.comparison", "PIL.ImageShow"),
    )
    script = f"import sys, fasttrain.trainer\nprint([name for name in {unneeded!r} if name in sys.modules])"
    done = shell('"$PY" -c "$SCRIPT"', tmp_path, SCRIPT=script)
    assert done.stdout.decode().strip() == "[]", done.stderr
