"""`fasttrain train`, `nips22`, `check`, `demo`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from ..errors import ConfigError, RunError
from ..guards import signals
from ..launch.orphans import end_with_launcher
from ..launch.place import rank
from ..startup import importing
from .configure import configure


def train(rest: list[str]) -> None:
    config = configure("train", rest)
    end_with_launcher()
    with signals.caught() as caught:  # before torch, whose import takes seconds
        with importing():
            from ..trainer import train

        train(config, caught)


def nips22(rest: list[str]) -> None:
    """The published flags; what is told goes to stderr, the command to stdout."""
    from ..compat.nips22 import add_flags, equivalent, in_flags, new_parser

    parser = new_parser("fasttrain nips22")
    add = parser.add_argument
    add("--data", default="", metavar="DIR", help="holds train/ and val/")
    add("--fast", action="store_true", default=False, help="the same recipe by this project's fast modes")
    add(
        "--print-command",
        action="store_true",
        default=False,
        help="print the fasttrain train command, train nothing",
    )
    if rest in (["-h"], ["--help"]):
        add_flags(parser)
        print(parser.format_help().rstrip())
        return
    own, published = parser.parse_known_args(rest)
    try:
        found = equivalent(published, own.data, fast=own.fast)
    except ConfigError as error:
        raise in_flags(error) from None
    if rank() == 0:
        for line in found.notices:
            print(f"notice: {line}", file=sys.stderr)
        print(shlex.join(["fasttrain", "train", *found.words]), flush=True)
    if own.print_command:
        return
    if not own.data:
        raise ConfigError("--data is missing; allowed: --data DIR, a folder that holds train/ and val/")
    try:
        train(found.words)
    except RunError as error:
        raise in_flags(error) from error.__cause__


def check(rest: list[str]) -> None:
    counts = {"--processes": 0, "--nodes": 1}
    others: list[str] = []
    words = iter(rest)
    for word in words:
        if word in counts:
            value = next(words, "")
            if not value.isdecimal() or int(value) < counts[word]:
                raise ConfigError(f"{word} is {value!r}; allowed: {counts[word]} or more")
            counts[word] = int(value)
        else:
            others.append(word)
    config = configure("check", others)
    with importing():
        from ..launch.preflight import check_run

    for line in check_run(config, counts["--processes"], counts["--nodes"]):
        print(line)


def demo(rest: list[str]) -> None:
    if len(rest) > 1 or (rest and rest[0].startswith("-")):
        raise ConfigError(f"demo {' '.join(rest)}; allowed: demo [DIR]")
    with importing():
        from ..demo import run_demo

    run_demo(Path(rest[0] if rest else "runs/demo"))
