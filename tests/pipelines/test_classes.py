"""Orders of class names, lists of them in files, and names that only look alike."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest
from timm.utils.misc import natural_key

from fasttrain.errors import ConfigError, DataError
from fasttrain.pipelines.classes import arranged, assumption, check_classes, difference, natural

pytestmark = pytest.mark.pipelines

ORDERS = [
    [str(number) for number in range(1000)],
    ["apple", "mango", "Yak", "Zebra"],
    ["c1", "c2", "c10", "c11", "c20"],
    ["7up", "a2b3", "a2b10", "a10b1", "class 9", "class 10", "n01440764", "n15075141"],
]


@pytest.mark.parametrize("expected", ORDERS)
def test_natural_order_is_timms(expected: list[str]) -> None:
    names = random.Random(0).sample(expected, len(expected))
    assert list(natural(names)) == expected == sorted(names, key=natural_key)


def test_names_that_are_equal_in_natural_order_are_sorted_as_text() -> None:
    assert natural(["a01", "A1", "a1", "b"]) == natural(["b", "a1", "A1", "a01"]) == ("A1", "a01", "a1", "b")


def test_an_option_gives_an_order(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(b"\xef\xbb\xbfc10\r\n\r\n c1 \nc2\xff")
    assert arranged(["c1", "c10"], "", "--classes") == ("c1", "c10")
    assert arranged(["c1", "c10", "c2"], "natural", "--classes") == ("c1", "c2", "c10")
    assert arranged(["c1", "c10"], str(tmp_path / "names"), "--classes") == ("c10", "c1", "c2\udcff")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\nb\na\n", "'a' more than once"),
        (" \n", "holds no name"),
        (None, "cannot be read: no such"),
        ("b\0\na\0\n", "holds a zero byte; allowed: UTF-8 text"),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / "names").write_text(text)
    with pytest.raises(ConfigError) as error:
        arranged([], str(tmp_path / "names"), "data.classes")
    assert str(error.value).startswith("data.classes ")
    assert told in str(error.value)
    assert "names, one per line" in str(error.value)


def test_an_order_that_others_would_not_take_is_told() -> None:
    line = assumption(sorted(ORDERS[0]), "val", "--classes")
    assert line == (
        "the outputs are taken to be val's folders sorted as text: 0, 1, 10, 100, ...; other orders: "
        "--classes natural (as timm sorts them), --classes FILE"
    )
    assert assumption(["Zebra", "apple"], "val", "--classes").count("Zebra, apple; other orders") == 1
    for clear in (["a", "b", "c"], [str(digit) for digit in range(10)], ["b", "a"], ["c1", "c2", "c10"]):
        assert assumption(clear, "val", "--classes") == ""


CAFE = "caf\u00e9"


@pytest.mark.parametrize(
    ("given", "other", "shown"),
    [
        (CAFE, unicodedata.normalize("NFD", CAFE), r"1 missing ('caf\xe9'), 1 extra ('cafe\u0301')"),
        ("great shark", "great\u00a0shark", r"1 missing ('great shark'), 1 extra ('great\xa0shark')"),
        ("dog", "dog ", "1 missing ('dog'), 1 extra ('dog ')"),
        ("dog", "d\u200bog", r"1 missing ('dog'), 1 extra ('d\u200bog')"),
        ("fish", "\ufb01sh", r"1 missing ('fish'), 1 extra ('\ufb01sh')"),
    ],
)
def test_names_that_look_alike_are_escaped(given: str, other: str, shown: str) -> None:
    assert difference(["a", other], ["a", given]) == (
        f"{shown}, names that look alike, but are spelled with other characters"
    )


def test_among_many_names_those_that_look_alike_come_first() -> None:
    missing, extra = ["a", "b", "c", CAFE], [unicodedata.normalize("NFD", CAFE), "x"]
    assert difference(extra, missing).startswith(
        r"4 missing ('caf\xe9', a, b, ...), 2 extra ('cafe\u0301', x)"
    )


def test_other_names_are_as_they_are() -> None:
    assert difference(["a", "b"], ["b", "a"]) == ""
    assert difference(["Caf\u00e9"], [CAFE]) == f"1 missing ({CAFE}), 1 extra (Caf\u00e9)"
    with pytest.raises(DataError, match=r"^it has other classes .*: 1 missing \(a\); allowed: the same 2"):
        check_classes("it", ["b"], ["a", "b"])
