"""Small text files: strict JSON, and lines whole or not at all."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from fasttrain.telemetry.files import append_line, read_json, to_json, write_json

FULL_DISK = """
import resource, sys
from pathlib import Path
from fasttrain.telemetry.files import append_line
resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))
try:
    append_line(Path(sys.argv[1]), "0123456789")
except OSError:
    sys.exit(9)
"""


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_what_json_lacks_becomes_null(tmp_path: Path) -> None:
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": math.inf}], "d": (1, "NaN", True, None)}
    wanted = {"a": None, "b": [1.5, None, {"c": None}], "d": [1, "NaN", True, None]}
    assert json.loads(to_json(value), parse_constant=refuse) == wanted
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_unreadable_json_is_empty(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") == {}
    for text in ("", "{", "[1]"):
        (tmp_path / "x.json").write_text(text)
        assert read_json(tmp_path / "x.json") == {}


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    append_line(path, "ab")
    result = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], timeout=240, check=False)
    assert result.returncode == 9
    assert path.read_text() == "ab\n"
    append_line(path, "cd")
    assert path.read_text() == "ab\ncd\n"
