from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from fasttrain.errors import ConfigError, DataError
from fasttrain.pipelines import digits
from fasttrain.pipelines.folder import scan

pytestmark = pytest.mark.pipelines


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def test_digits_are_written_the_same_each_time(tmp_path: Path) -> None:
    digits.write_digits(tmp_path / "one")
    digits.write_digits(tmp_path / "deep" / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "deep" / "two")
    train = scan(tmp_path / "one" / "train")
    test = scan(tmp_path / "one" / "test", train.classes)
    assert train.classes == tuple("0123456789")
    assert len(train.files) + len(test.files) == digits.IMAGES
    for label in range(10):
        share = test.labels.count(label) / (test.labels.count(label) + train.labels.count(label))
        assert share == pytest.approx(0.2, abs=0.005)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_complete_digits_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits.write_digits(tmp_path / "digits")
    before = (tmp_path / "digits").stat().st_mtime_ns
    monkeypatch.setattr(digits, "_write", lambda folder: pytest.fail("written again"))
    digits.write_digits(tmp_path / "digits")
    assert (tmp_path / "digits").stat().st_mtime_ns == before


def test_another_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"cannot write the digits to .*mine"):
        digits.write_digits(tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.tex"]


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_sklearn(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError("No module named 'sklearn'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ConfigError, match=r"sklearn.*pip install 'fasttrain\[demo\]'"):
        digits.write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
