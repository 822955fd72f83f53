"""`fasttrain runs`, `watch`, `report`: of run folders."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """List the runs in a folder: state, progress, best accuracy, speed, and when they end or ended."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = Path("runs")
    """Holds the runs' folders, or folders of them."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON."""


def runs(rest: list[str]) -> None:
    options = tyro.cli(_Runs, prog="fasttrain runs", args=rest)
    from ..telemetry.files import to_json
    from ..telemetry.runs import list_runs, table

    runs = list_runs(options.folder)
    if options.json:
        print(to_json([asdict(run) for run in runs], indent=2))
    elif runs:
        Console(width=None if Console().is_terminal else 120, highlight=False).print(table(runs))
    else:
        print(f"no runs in {options.folder}")


@dataclass(frozen=True, kw_only=True)
class _Watch:
    """Show a run's curves in the terminal until it ends, or Ctrl-C."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder."""
    once: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one frame and end; so it is, too, where the output is no terminal."""


def watch(rest: list[str]) -> None:
    options = tyro.cli(_Watch, prog="fasttrain watch", args=rest)
    from ..telemetry.watch import watch

    watch(options.run, once=options.once)


@dataclass(frozen=True, kw_only=True)
class _Report:
    """Write one HTML page about runs, finished or not: curves, accuracy, subnets, speed, energy, settings."""

    runs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The runs' folders."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """The page; without it report.html in the first run's folder."""


def report(rest: list[str]) -> None:
    options = tyro.cli(_Report, prog="fasttrain report", args=rest)
    if not options.runs:
        raise ConfigError("report needs a run; allowed: fasttrain report RUN [RUN ...] [-o FILE]")
    from ..report import write_report

    print(f"report: {write_report(options.runs, options.output)}")
