"""Names of classes: their order, lists of them in files, and how two sets of them differ.

Labels number the class folders sorted as text. Other programs have other orders: timm sorts numbers inside of
names by their value and takes no account of case, and folders named 0 to 999 mean those labels.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fasttrain.errors import ConfigError, DataError

NATURAL = "natural"
"""The order that people and timm give to names: c2 before c10, apple before Zebra."""


def natural(names: Sequence[str]) -> tuple[str, ...]:
    """Names in natural order; names that are equal in it are sorted as text."""
    return tuple(sorted(sorted(names), key=_natural_key))


def _natural_key(name: str) -> list[tuple[int, str]]:
    words = re.split("([0-9]+)", name.lower())  # text and numbers in turn
    return [(int(word), "") if index % 2 else (0, word) for index, word in enumerate(words)]


def arranged(names: Sequence[str], order: str, option: str) -> tuple[str, ...]:
    """Names of classes in the order that an option asks for.

    Args:
        names: of the class folders.
        order: `natural`, or a file with the names, one per line; empty: as they are.
        option: what messages call it.

    Raises:
        ConfigError: a file that cannot be read or is no list of names.
    """
    if not order:
        return tuple(names)
    return natural(names) if order == NATURAL else read_names(Path(order), option)


def read_names(path: Path, option: str) -> tuple[str, ...]:
    """Names of classes in a file, one per line.

    Raises:
        ConfigError: it cannot be read or is no list of names.
    """
    try:
        lines = path.read_text("utf-8-sig", "surrogateescape").split("\n")  # a name may be no UTF-8
    except OSError as error:
        raise ConfigError(
            f"{option} {path} cannot be read: {(error.strerror or str(error)).lower()}; allowed: a file with "
            f"the class folders' names, one per line, or {NATURAL}"
        ) from None
    if any("\0" in line for line in lines):
        raise ConfigError(
            f"{option} {path} holds a zero byte; allowed: UTF-8 text, the class folders' names, one per line"
        )
    names = tuple(line.strip() for line in lines if line.strip())
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names:
        what = f"{twice[0]!r} more than once" if twice else "no name"
        raise ConfigError(f"{option} {path} holds {what}; allowed: the class folders' names, one per line")
    return names


def assumption(names: Sequence[str], root: str, option: str) -> str:
    """A line for networks whose outputs have no names, where folders are sorted as text and other programs
    would sort them otherwise; else empty.

    Args:
        names: of the classes, by their labels.
        root: the folder that holds them.
        option: that gives another order.
    """
    if list(names) != sorted(names) or tuple(names) == natural(names):
        return ""
    some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return (
        f"the outputs are taken to be {root}'s folders sorted as text: {some}; other orders: {option} "
        f"{NATURAL} (as timm sorts them), {option} FILE"
    )


def check_classes(what: str, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raises DataError if `what` has other classes than expected, in whatever order."""
    differing = difference(found, expected)
    if differing:
        raise DataError(
            f"{what} has other classes than those given (the training images' or a list): {differing}; "
            f"allowed: the same {len(expected)} class folders"
        )


def difference(found: Sequence[str], expected: Sequence[str]) -> str:
    """How names differ from those expected, in whatever order; empty: they do not.

    Names that only look alike are escaped, so that it shows where they differ.
    """
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    looks = {look(name) for name in missing} & {look(name) for name in extra}
    alike = [name for name in (*missing, *extra) if look(name) in looks]
    sides = [
        f"{len(names)} {side} ({_few(names, alike)})"
        for side, names in (("missing", missing), ("extra", extra))
        if names
    ]
    if alike:
        sides.append("names that look alike, but are spelled with other characters")
    return ", ".join(sides)


def look(name: str) -> str:
    """What names that look alike have in common: neither how letters are composed, nor which spaces or
    invisible characters there are.
    """
    letters = unicodedata.normalize("NFKC", name)
    visible = (each for each in letters if unicodedata.category(each) not in ("Cc", "Cf"))
    return " ".join("".join(visible).split())


def _few(names: Sequence[str], alike: Sequence[str], limit: int = 3) -> str:
    """The first names, those that look alike before the others."""
    ordered = sorted(names, key=lambda name: name not in alike)
    shown = [ascii(name) if name in alike else name for name in ordered[:limit]]
    return ", ".join(shown) + (", ..." if len(names) > limit else "")
