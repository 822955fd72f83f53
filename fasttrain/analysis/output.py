"""What an analysis leaves: a JSON file, a picture, a short table. Pictures need the extra `report`."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table

from ..errors import ConfigError
from ..telemetry.files import is_no_file, replace_bytes, write_json

if TYPE_CHECKING:
    from ..subnets import Depths


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: the first column names what the others tell of; fractions get two digits."""

    columns: Sequence[str]
    cells: Sequence[Sequence[object]]


class Result(Protocol):
    """What an analysis finds: a dataclass, whose fields are the JSON file's."""

    def rows(self) -> Rows:
        """A short table."""

    def draw(self, figure: Any) -> None:
        """Draw on an empty matplotlib figure."""


def new_figure(width: float = 7.5, height: float = 4.8) -> Any:
    """An empty figure, inches; nothing of matplotlib's global state is touched.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'fasttrain[report]'") from None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def paths_of(folder: Path, name: str) -> list[Path]:
    """NAME.json and NAME.png."""
    return [folder / f"{name}.json", folder / f"{name}.png"]


def check_folder(folder: Path, name: str) -> None:
    """Whether `write` will be able to, before anything is computed; nothing is made yet.

    Raises:
        ConfigError: the folder cannot be made or written, or a folder lies where a file is to be.
    """
    there = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write to --output {folder}; allowed: a folder, or a new one")
    for path in paths_of(folder, name):
        if is_no_file(path):
            raise ConfigError(f"cannot write {path}: it is no file; allowed: another --output")


def write(folder: Path, name: str, values: Mapping[str, Any], result: Result) -> list[Path]:
    """Write NAME.json and NAME.png.

    Raises:
        ConfigError: the folder cannot be made or written.
    """
    figure = new_figure()
    result.draw(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    paths = paths_of(folder, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(paths[0], values)
        replace_bytes(paths[1], picture.getvalue())
    except OSError as error:
        raise ConfigError(f"cannot write to --output {folder}: {error.strerror}") from None
    return paths


def show(title: str, rows: Rows) -> None:
    """Print a table."""
    table = Table(title=title)
    for index, column in enumerate(rows.columns):
        table.add_column(column, justify="right" if index else "left")
    for cells in rows.cells:
        table.add_row(*map(_text, cells))
    Console(width=None if Console().is_terminal else 110, highlight=False).print(table)


def of_others(values: Sequence[float], depths: Sequence[Depths], full: Depths) -> list[float]:
    """The values of the subnets proper: a space holds the main network too, which is compared with itself."""
    return [value for value, own in zip(values, depths, strict=True) if own != full]


def extent(values: Sequence[float], digits: str = ".2f") -> list[str]:
    """Least and greatest, for a table; of nothing a dash each."""
    return [f"{each:{digits}}" for each in (min(values), max(values))] if values else ["-", "-"]


def _text(cell: object) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


TOP1 = "Top-1 on the validation images, %"
"""Of y axes."""


def finish(axes: Any, *, title: str, x: str, y: str = TOP1) -> None:
    """Title, labels, a light grid, and the legend."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def whole_numbers(axes: Any) -> None:
    """Label the x axis at whole numbers alone."""
    axes.xaxis.get_major_locator().set_params(integer=True)


def beside(places: Sequence[float], index: int, count: int) -> list[float]:
    """Whole numbers on the x axis, shifted so that the points of `count` networks do not hide each other."""
    return [place + 0.12 * (index - (count - 1) / 2) for place in places]


def whose(statistics: str) -> str:
    """Whose batch-norm statistics networks ran with, in a title."""
    return {"main": "of the main network", "reestimated": "re-estimated for each"}[statistics]
