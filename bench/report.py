"""`python -m bench report`: the README's tables and the plots, made from the files in bench/results.

A table stands between `<!-- bench:NAME FOLDER -->`, NAME one of `TABLES` and FOLDER a device's in
bench/results (`.` for what is computed), and `<!-- /bench -->`. `--check` changes nothing, and fails where a
table is not its file's.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from fasttrain.errors import ConfigError, DataError, RunError, instead

from .arguments import Parser
from .plots import PLOTS
from .rows import RESULTS
from .tables import TABLES

README = RESULTS.parent.parent / "README.md"

_START = re.compile(r"^<!-- bench:", flags=re.MULTILINE)
_BLOCK = re.compile(
    r"^(<!-- bench:(\S+) (\S+) -->\n)(?:(?!^<!-- bench:).)*?(<!-- /bench -->)", flags=re.DOTALL | re.MULTILINE
)


def main(argv: Sequence[str]) -> None:
    """Write or check the README's tables.

    Raises:
        ConfigError: a README that cannot be read, or a table that nothing makes.
        RunError: with --check, a table that differs.
    """
    parser = Parser(prog="python -m bench report", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table differs")
    parser.add_argument("--readme", type=Path, default=README, help="default: the repository's")
    options = parser.parse_args(list(argv))
    try:
        text = options.readme.read_text()
    except OSError as error:
        raise ConfigError(f"--readme is {options.readme}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--readme is {options.readme}, which is not UTF-8 text") from None
    made = render(text)
    if options.check and made != text:
        raise RunError(f"{options.readme} is not what bench/results gives: run python -m bench report")
    if not options.check:
        options.readme.write_text(made)
        print(f"{len(_BLOCK.findall(text))} tables: {options.readme}")
        for path in draw():
            print(f"plot: {path}")


def draw() -> list[Path]:
    """Draw each device's plots beside its files, where matplotlib is; the pictures."""
    if importlib.util.find_spec("matplotlib") is None:
        print("plots: left out (they need matplotlib)")
        return []
    drawn = []
    for name, plot in PLOTS.items():
        for source in sorted(RESULTS.glob(f"*/{name}.csv")):
            plot(source.parent, source.with_suffix(".png"))
            drawn.append(source.with_suffix(".png"))
    return drawn


def render(text: str) -> str:
    """The text with each table made anew.

    Raises:
        ConfigError: a table that nothing makes, or one without its end.
        DataError: results that are damaged.
    """
    blocks = len(_BLOCK.findall(text))
    starts = len(_START.findall(text))
    if starts != blocks:
        raise ConfigError(f"{starts} tables start, {blocks} end with <!-- /bench -->")

    def replace(block: re.Match[str]) -> str:
        start, name, folder, end = block.groups()
        if name not in TABLES:
            raise ConfigError(f"table is {name!r}; {instead(name, TABLES)}")
        try:
            lines = TABLES[name](RESULTS / folder)
        except OSError as error:
            raise ConfigError(f"table {name} {folder}: {error.filename}: {error.strerror}") from None
        except (KeyError, ValueError, StopIteration) as error:
            if isinstance(error, RunError):
                raise
            raise DataError(f"table {name} {folder}: its file is damaged or not complete: {error}") from None
        return start + "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + end

    return _BLOCK.sub(replace, text)
