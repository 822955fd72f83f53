"""`python -m bench report`: the README's tables and the plots, made from the files in bench/results.

A table stands between `<!-- bench:NAME FOLDER -->`, NAME one of `TABLES` and FOLDER a device's in
bench/results, and `<!-- /bench -->`. `--check` changes nothing, and fails where a table is not its file's.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from fasttrain.errors import ConfigError, RunError

from .arguments import Parser
from .plots import METRICS, PLOTS, spread, studies
from .rows import RESULTS, read
from .summary import Values, mean

README = RESULTS.parent.parent / "README.md"

_BLOCK = re.compile(r"(<!-- bench:(\S+) (\S+) -->\n).*?(<!-- /bench -->)", flags=re.DOTALL)

_STEPS = {
    "ct": "common training",
    "timm": "the same, timm's own model and a plain step",
    "naive": "ST++ as published",
    "stpp-r1": "ST++, one downscaled batch",
    "stpp-r2": "ST++, two downscaled sizes per step",
    "stpp-r3": "ST++, three sizes",
    "stpp-rk": "ST++, a size per subnet",
    "stpp-half": "ST++, one downscaled batch, subnets on half of it",
    "stpp-coupled": "ST++, one downscaled batch, coupled draws",
    "stpp-cascaded": "ST++, the published inputs by our code",
    "stpp-split": "ST++, split passes",
    "st": "ST",
    "st-split": "ST, split passes",
    "st-k": "ST with K subnets",
}
"""Mode of `bench step` to words."""

_OTHER_METHODS = ("st", "st-split", "st-k")  # not what the published ST++ step trains


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
        ConfigError: a table that nothing makes.
    """

    def replace(block: re.Match[str]) -> str:
        start, name, folder, end = block.groups()
        if name not in TABLES:
            raise ConfigError(f"table is {name!r}; allowed: {', '.join(TABLES)}")
        try:
            lines = TABLES[name](RESULTS / folder)
        except OSError as error:
            raise ConfigError(f"table {name} {folder}: {error.filename}: {error.strerror}") from None
        return start + "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + end

    return _BLOCK.sub(replace, text)


def step_table(folder: Path) -> list[list[str]]:
    """Ratios of means over draws."""
    values: Values = defaultdict(lambda: defaultdict(list))
    for row in read(folder / "step.csv"):
        values[row["mode"]][row["metric"]].append(float(row["value"]))
    header = ["step", "seconds over CT's", "naive's seconds over its", "FLOPs over CT's"]
    header.append("peak memory over CT's, worst draw")
    lines = [header, ["---"] * len(header)]
    for mode in values:
        name, _, variant = mode.partition(":")
        ratios = (
            _over(values, mode, "ct", "seconds"),
            "-" if name in _OTHER_METHODS else _over(values, "naive", mode, "seconds"),
            _over(values, mode, "ct", "flops"),
            _over(values, mode, "ct", "peak_bytes"),
        )
        lines.append([f"`{mode}`: {_STEPS[name]}{f', {variant}' if variant else ''}", *ratios])
    return lines


def _over(values: Values, mode: str, other: str, metric: str) -> str:
    a, b = mean(values, mode, metric), mean(values, other, metric)
    return "-" if a is None or not b else f"{a / b:.2f}"


def walk_table(folder: Path) -> list[list[str]]:
    """All subnets in one walk against one by one."""
    rows = read(folder / "walk.csv")
    values = {row["metric"]: row["value"] for row in rows}
    first = rows[0]
    header = ["network, space", "one by one over one walk, seconds", "blocks", "crop", "images"]
    cells = [f"{first['model']}, {first['space']}", f"{float(values['ratio']):.2f}"]
    cells += [f"{float(values['block_ratio']):.2f}", first["crop"], first["batch"]]
    return [header, ["---"] * len(header), cells]


def study_table(folder: Path) -> list[list[str]]:
    """Accuracy of each method: mean and standard deviation over the seeds, percent."""
    header = ["training", "main network", "all subnets: mean", "their deviation", "worst", "seeds"]
    lines = [header, ["---"] * len(header)]
    for title, study in studies(folder).items():
        lines.append([f"*{title}*", *[""] * (len(header) - 1)])
        for method, own in study.items():
            cells = [spread(own[metric]) for metric in METRICS]
            lines.append([f"`{method}`", *cells, str(len(own["main"]))])
    return lines


def kernels_table(folder: Path) -> list[list[str]]:
    """Each operation and shape: times over eager's and the compiled one's, share of the copy rate."""
    rows = read(folder / "kernels.csv")
    values: dict[tuple[str, str], dict[tuple[str, str], float]] = defaultdict(dict)
    for row in rows:
        values[row["op"], row["shape"]][row["implementation"], row["metric"]] = float(row["p50"])
    rate = next(float(row["p50"]) for row in rows if row["op"] == "copy")
    header = ["operation", "shape", "us", "eager's over its", "compiled over its", "GB/s", "of the copy rate"]
    lines = [header, ["---"] * len(header)]
    for (op, shape), own in values.items():
        seconds = own.get(("triton", "seconds"))
        if seconds is not None:
            others = [own.get((name, "seconds")) for name in ("eager", "compile")]
            speed = own["triton", "moved"] / seconds
            cells = [f"`{op}`", shape, f"{1e6 * seconds:.1f}"]
            cells += ["-" if other is None else f"{other / seconds:.2f}" for other in others]
            lines.append([*cells, f"{speed / 1e9:.0f}", f"{100 * speed / rate:.0f} %"])
    return lines


def demo_table(folder: Path) -> list[list[str]]:
    """Top-1 of the demo's networks and their subnets, in percent."""
    results = json.loads((folder / "demo.json").read_text())["results"]
    header = ["training", "main network", "subnets: mean", "deviation", "worst"]
    fields = ("main", "mean", "deviation", "worst")
    lines = [[name, *(f"{own[field]:.2f}" for field in fields)] for name, own in results.items()]
    return [header, ["---"] * len(header), *lines]


TABLES: dict[str, Callable[[Path], list[list[str]]]] = {
    "step": step_table,
    "walk": walk_table,
    "kernels": kernels_table,
    "study": study_table,
    "demo": demo_table,
}
"""Name of a table to what makes its lines, header first, from a device's folder of results."""
