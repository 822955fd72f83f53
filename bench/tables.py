"""The README's tables, each made from a file of a folder in bench/results: a device's, or itself."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

from .growth import CURVES
from .plots import METRICS, spread, studies
from .rows import read
from .summary import Values, by_mode, mean

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
    "augsub-mask": "AugSub, masking",
    "augsub-path": "AugSub, drop-path",
}
"""Mode of `bench step` to words."""

_OTHER_METHODS = (
    "st",
    "st-split",
    "st-k",
    "augsub-mask",
    "augsub-path",
)  # not what the published ST++ step trains

_GROWTH = {
    ("K", "stpp"): (2, 6, 16),
    ("K", "coupled"): (6,),
    ("K", "full"): (2, 6, 16),
    ("R", "sizes"): (2, 3, 6),
    ("depth", "stpp"): (33, 50),
    ("depth", "st"): (16, 33, 50),
}
"""Which rows of growth.csv are shown, by quantity and curve."""


def step_table(path: Path) -> list[list[str]]:
    """Ratios of means over draws, from a file of `bench step`."""
    values = by_mode(read(path))
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


def checks_table(folder: Path) -> list[list[str]]:
    """Each operation's checks: how many, how many hold, and the largest error over what is allowed."""
    outcomes: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for row in read(folder / "checks.csv"):
        outcomes[row["op"]].append((int(row["holds"]), int(row["results"]), float(row["worst"])))
    header = ["what", "checks that hold", "results compared", "largest error over the allowed"]
    lines = [header, ["---"] * len(header)]
    for op, own in outcomes.items():
        holding, results, worst = zip(*own, strict=True)
        cells = [f"{sum(holding)} of {len(own)}", str(sum(results)), f"{max(worst):.2f}"]
        lines.append([f"`{op}`", *cells])
    return lines


def data_table(folder: Path) -> list[list[str]]:
    """Images per CPU-second of each stage, and this project's pipelines over the others."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in read(folder / "data.csv"):
        if row["metric"] == "per_cpu_second":
            values[row["stage"], row["loader"]].append(float(row["value"]))
    medians = {key: median(own) for key, own in values.items()}
    names = dict.fromkeys(loader for _, loader in medians)
    own = [loader for loader in names if loader.startswith("dali")]
    others = [loader for loader in names if loader not in own]
    loaders, pairs = own + others, [(ours, other) for ours in own for other in others]
    header = ["images per CPU-second", *loaders, *(f"{ours} over {other}" for ours, other in pairs)]
    lines = [header, ["---"] * len(header)]
    for stage in dict.fromkeys(stage for stage, _ in medians):
        rates = [f"{medians[stage, loader]:.0f}" if (stage, loader) in medians else "-" for loader in loaders]
        gains = [
            f"{medians[stage, ours] / medians[stage, other]:.2f}" if (stage, ours) in medians else "-"
            for ours, other in pairs
        ]
        lines.append([stage, *rates, *gains])
    return lines


def save_table(folder: Path) -> list[list[str]]:
    """Steps without and with a checkpoint in flight, and what it takes: medians."""
    rows = read(folder / "save.csv")
    medians = _medians(rows)
    header = ["recipe", "crop, batch", "step alone, ms", "with a save in flight, ms", "delay"]
    header += ["snapshot, ms", "written in, s"]
    cells = [f"{1e3 * medians[metric]:.0f}" for metric in ("quiet", "saving")]
    cells += [f"{medians['delay']:.1f} %", f"{1e3 * medians['snapshot']:.0f}", f"{medians['writing']:.1f}"]
    return [header, ["---"] * len(header), [*_job(rows[0]), *cells]]


def wait_table(folder: Path) -> list[list[str]]:
    """Steps on a batch that stays and on the pipeline's, medians over the rounds."""
    rows = read(folder / "wait.csv")
    medians = _medians(rows)
    header = ["recipe", "crop, batch", "a batch that stays, ms", "with the pipeline, ms", "waiting"]
    cells = [f"{1e3 * medians[metric]:.0f}" for metric in ("resident", "loaded")]
    return [header, ["---"] * len(header), [*_job(rows[0]), *cells, f"{medians['waiting']:.2f} %"]]


def _medians(rows: list[dict[str, str]]) -> dict[str, float]:
    """Metric to the median of its values."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        values[row["metric"]].append(float(row["value"]))
    return {metric: median(own) for metric, own in values.items()}


def _job(row: dict[str, str]) -> list[str]:
    return [f"`{row['recipe']}`", f"{row['crop']}, {row['batch']}"]


def walk_table(folder: Path) -> list[list[str]]:
    """All subnets in one walk against one by one."""
    header = ["network, space", "batch-norm statistics", "one by one over one walk, seconds", "blocks"]
    lines = [[*header, "crop", "images"], ["---"] * (len(header) + 2)]
    groups: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in read(folder / "walk.csv"):
        groups[row["statistics"]][row["metric"]] = row
    for statistics, rows in groups.items():
        row = rows["ratio"]
        ratios = [f"{float(rows[metric]['value']):.2f}" for metric in ("ratio", "block_ratio")]
        lines.append([f"{row['model']}, {row['space']}", statistics, *ratios, row["crop"], row["batch"]])
    return lines


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


def compare_table(folder: Path) -> list[list[str]]:
    """`fasttrain compare`: costs over the baseline's and Top-1 in percent, ties for the highest in bold."""
    result = json.loads((folder / "compare.json").read_text())
    header = ["recipe", "time of a step", "peak memory", "main network", "all subnets: mean"]
    lines = [[*header, "their deviation", "seeds"], ["---"] * (len(header) + 2)]
    for row in result["rows"]:
        cells = [f"{row['time']:.2f}", f"{row['memory']:.2f}"]
        for column in ("main", "subnets", "deviation"):
            best = row["recipe"] in result["ties"].get(column, ())
            cells.append(f"**{_spread(row[column])}**" if best else _spread(row[column]))
        lines.append([f"`{row['recipe']}`", *cells, str(row["seeds"])])
    return lines


def _spread(own: dict[str, float]) -> str:
    return f"{own['mean']:.2f} ± {own['deviation']:.2f}"


def growth_table(folder: Path) -> list[list[str]]:
    """FLOPs of some steps by their tree and by separate passes, in plain steps."""
    header = ["step", "network", "prefix tree", "separate passes", "these over the tree"]
    lines = [header, ["---"] * len(header)]
    for row in read(folder / "growth.csv"):
        if int(row["value"]) in _GROWTH.get((row["quantity"], row["curve"]), ()):
            tree, naive = float(row["tree"]), float(row["naive"])
            what = f"{CURVES[row['curve']]}, {row['quantity']} = {row['value']}"
            what = what.replace("depth = ", "blocks: ")
            lines.append([what, row["model"], f"{tree:.2f}", f"{naive:.2f}", f"{naive / tree:.2f}"])
    return lines


def plan_table(folder: Path) -> list[list[str]]:
    """Each GPU's plan, and its efficiency where each of more GPUs has as many images."""
    values: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    shapes, labels = {}, {}
    for row in read(folder / "plan.csv"):
        if row["part"] == "plan":
            values[row["gpu"]]["plan", row["metric"]] = row["value"]
            shapes[row["gpu"]] = f"{row['gpus']} {row['gpu'].upper()}"
            if row["metric"] == "hours":
                labels[row["gpu"]] = row["label"]
        elif row["part"] == "weak":
            values[row["gpu"]][row["gpus"], row["metric"]] = row["value"]
    header = [
        "GPUs",
        "step, ms",
        "images/s",
        "hours",
        "energy, kWh",
        "efficiency of 64, of 1,024",
        "which is",
    ]
    lines = [header, ["---"] * len(header)]
    for gpu, own in values.items():
        step, rate, hours, energy = (float(own["plan", name]) for name in ("step", "rate", "hours", "energy"))
        cells = [f"{step:.1f}", f"{rate:,.0f}", f"{hours:.1f}", f"{energy:.0f}"]
        efficiency = ", ".join(f"{float(own[count, 'efficiency']):.0f} %" for count in ("64", "1024"))
        lines.append([shapes[gpu], *cells, efficiency, labels[gpu]])
    return lines


def check_table(folder: Path) -> list[list[str]]:
    """The plan's model beside recorded figures."""
    header = ["figure", "model", "recorded", "error", "source"]
    lines = [header, ["---"] * len(header)]
    for row in read(folder / "plan.csv"):
        if row["part"] == "check":
            model, recorded = float(row["value"]), float(row["recorded"])
            unit = "" if row["unit"] == "plain steps" else f" {row['unit']}"
            form = ",.0f" if recorded > 100 else ".2f"
            cells = [f"{model:{form}}{unit}", f"{recorded:{form}}{unit}"]
            lines.append([row["metric"], *cells, f"{100 * (model / recorded - 1):+.1f} %", row["source"]])
    return lines


TABLES: dict[str, Callable[[Path], list[list[str]]]] = {
    "step": lambda folder: step_table(folder / "step.csv"),
    "step-224": lambda folder: step_table(folder / "step-224.csv"),
    "step-mobilenetv3": lambda folder: step_table(folder / "step-mobilenetv3.csv"),
    "step-augsub": lambda folder: step_table(folder / "step-augsub.csv"),
    "checks": checks_table,
    "walk": walk_table,
    "data": data_table,
    "save": save_table,
    "wait": wait_table,
    "kernels": kernels_table,
    "study": study_table,
    "demo": demo_table,
    "compare": compare_table,
    "growth": growth_table,
    "plan": plan_table,
    "plan-check": check_table,
}
"""Name of a table to what makes its lines, header first, from a device's folder of results."""
