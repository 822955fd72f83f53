"""The command line: `fasttrain train|check|evaluate|runs|watch|...`. Alone in knowing tyro."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import tyro
from rich.console import Console

from .config import Config, to_dict
from .errors import INTERRUPTED, ConfigError, RunError
from .guards import signals
from .launch.orphans import end_with_launcher
from .launch.status import tell_exit
from .recipes import RECIPES, describe, recipe, sources

if TYPE_CHECKING:
    from .reevaluate import Verdict

USAGE = """usage: fasttrain COMMAND ...

  train RECIPE [--section.field value ...]              train, or go on; RECIPE may be a run's config.json
  check RECIPE [--section.field value ...]              look for mistakes in a run before it is started
        [--processes N] [--nodes N]                     with N processes on each of N machines
  evaluate RUN [--help]                                 evaluate a run's main network and subnets
  export RUN --format FORMAT -o FILE [--help]           write its network for another program
  analyze NAME RUN [RUN ...] [-o DIR] [--help]          one of the papers' experiments, as JSON and a picture
  runs [DIR] [--json]                                   list the runs in a folder (default: runs)
  watch RUN [--once]                                    a run's curves in the terminal, while it runs
  nips22 FLAGS --data DIR [--fast] [--print-command]    train by the flags of the published NIPS22-ST train.py
  report RUN [RUN ...] [-o FILE]                        runs as one HTML page (default: RUN/report.html)
  recipes                                               list the recipes
  show RECIPE [--section.field value ...]               print a recipe as JSON, overrides applied
  data check DIR [-o MANIFEST] [--help]                 decode every image once; list the bad ones
  data pack DIR_OR_MANIFEST -o DIR --shards N [--help]  write the images into shuffled tars
  data demo DIR                                         write the demo's digits as JPEGs
  demo [DIR]                                            CT against ST++ on the digits (default: runs/demo)
  doctor                                                what this machine has, and what would be chosen

fasttrain train RECIPE --help lists every field."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; exits with the status of `fasttrain.errors`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    try:
        _dispatch(arguments[0], arguments[1:])
        sys.stdout.flush()
    except RunError as error:
        _fail(str(error), error.exit_status, error.speaks)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(str(error), 1)
    except SystemExit as error:
        if error.code:  # tyro has said what is wrong
            tell_exit(ConfigError.exit_status, "a wrong command line")
        raise
    except Exception as error:  # a fault of the program: its traceback is shown
        tell_exit(RunError.exit_status, f"{type(error).__name__}: {error}")
        raise
    if arguments[0] in ("train", "nips22"):
        tell_exit(0, "done")


def _dispatch(command: str, rest: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "check": _check,
        "evaluate": _evaluate,
        "export": _export,
        "analyze": _analyze,
        "runs": _runs,
        "watch": _watch,
        "nips22": _nips22,
        "report": _report,
        "recipes": _recipes,
        "show": _show,
        "data": _data,
        "demo": _demo,
        "doctor": _doctor,
    }
    if command not in commands:
        raise ConfigError(f"unknown command {command!r}; allowed: {', '.join(commands)}")
    own_help = ("evaluate", "export", "analyze", "runs", "watch", "report", "data")
    if rest[:1] in (["-h"], ["--help"]) and command not in own_help:
        print(USAGE)
        return
    commands[command](rest)


def _fail(message: str, status: int, speaks: bool | None = None) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    if rank == "0" if speaks is None else speaks:
        print(f"fasttrain: {f'rank {rank}: ' if rank != '0' else ''}{message}", file=sys.stderr)
    tell_exit(status, message)
    sys.exit(status)


def _configure(command: str, rest: list[str]) -> Config:
    if not rest or rest[0].startswith("-"):
        raise ConfigError(f"{command} needs a recipe; allowed: {', '.join(RECIPES)}, or a run's config.json")
    overrides = [word for entry in rest[1:] for word in _RESUME.get(entry, (entry,))]
    return tyro.cli(
        Config,
        prog=f"fasttrain {command} {rest[0]}",
        description=f"Recipe {rest[0]}: every field and its value there.",
        default=recipe(rest[0]),
        args=list(_spelled_out(overrides)),
    )


def _spelled_out(arguments: Iterable[str]) -> Iterator[str]:
    """The arguments with ranges of sides written out: --method.sizes 64:66 is 64 65 66, 64:80:8 is 64 72 80.

    Raises:
        ConfigError: a range of none, or of sides that no image has.
    """
    option = ""
    for argument in arguments:
        option = argument if argument.startswith("--") else option
        found = re.fullmatch(r"(\d{1,9}):(\d{1,9})(?::(\d{1,9}))?", argument)
        if found is None or option != "--method.sizes":
            yield argument
            continue
        low, high, step = (int(number or 1) for number in found.groups())
        if not 1 <= low <= high <= 4096 or step < 1:
            raise ConfigError(f"--method.sizes is {argument}; allowed: LOW:HIGH or LOW:HIGH:STEP, up to 4096")
        yield from map(str, range(low, high + 1, step))


_RESUME = {"--resume": ("--run.resume", "auto")}
"""An older name of what is the default now."""


def _train(rest: list[str]) -> None:
    config = _configure("train", rest)
    end_with_launcher()
    with signals.caught() as caught:  # before torch, whose import takes seconds
        from .trainer import train

        train(config, caught)


def _nips22(rest: list[str]) -> None:
    """The published flags; what is told goes to stderr, the command to stdout."""
    from .compat.nips22 import Parser, equivalent

    parser = Parser("nips22")
    parser.add_argument("--data", default="")
    parser.add_argument("--fast", action="store_true", default=False)
    parser.add_argument("--print-command", action="store_true", default=False)
    own, published = parser.parse_known_args(rest)
    found = equivalent(published, own.data, fast=own.fast)
    if int(os.environ.get("RANK", 0)) == 0:
        for line in found.notices:
            print(f"notice: {line}", file=sys.stderr)
        print(shlex.join(["fasttrain", "train", *found.words]), flush=True)
    if own.print_command:
        return
    if not own.data:
        raise ConfigError("--data is missing; allowed: --data DIR, a folder that holds train/ and val/")
    _train(found.words)


def _check(rest: list[str]) -> None:
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
    config = _configure("check", others)
    from .launch.preflight import check_run

    for line in check_run(config, counts["--processes"], counts["--nodes"]):
        print(line)


@dataclass(frozen=True, kw_only=True)
class _Evaluate:
    """Evaluate a run's main network and its subnets."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, one checkpoint file, or a file of weights."""
    checkpoint: Literal["best", "last"] = "best"
    """Which of the folder's checkpoints; the last where there is no best."""
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """A recipe or config.json that a file of weights fits."""
    val: str = ""
    """Validation images; empty: as in the run."""
    train: str = ""
    """Training images for the batch-norm statistics; empty: as in the run."""
    subnets: int = -1
    """How many subnets of the run's space; -1 all, 0 none."""
    statistics: Literal["reestimated", "main", "both"] = "reestimated"
    """Whose batch-norm statistics the subnets run with."""
    batch: int = 0
    """Images per process and batch; 0: as in the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    output: str = ""
    """A JSON file for the result, each subnet's accuracy included."""


def _evaluate(rest: list[str]) -> None:
    options = tyro.cli(_Evaluate, prog="fasttrain evaluate", args=rest)
    if options.subnets < -1 or options.batch < 0:
        raise ConfigError(
            f"--subnets {options.subnets} --batch {options.batch}; allowed: at least -1, at least 0"
        )
    from .reevaluate import evaluate_checkpoint
    from .trainer import subnets_line

    if options.output and not Path(options.output).parent.is_dir():
        raise ConfigError(f"--output is {options.output}; allowed: a file in a folder that exists")
    verdict = evaluate_checkpoint(
        options.run,
        which=options.checkpoint,
        recipe=options.recipe,
        train=options.train,
        val=options.val,
        subnets=options.subnets,
        statistics=options.statistics,
        batch=options.batch,
        device=options.device,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    main_accuracy = verdict.main
    print(
        f"{verdict.path}: Top-1 {main_accuracy.top1:.3f} %, Top-5 {main_accuracy.top5:.3f} %, "
        f"loss {main_accuracy.loss:.4f}, {main_accuracy.images} images"
    )
    for report in verdict.subnets:
        print(subnets_line(report))
    if options.output:
        _write_verdict(verdict, Path(options.output))


def _write_verdict(verdict: Verdict, path: Path) -> None:
    from .telemetry.files import write_json

    try:
        write_json(path, asdict(verdict) | {"path": str(verdict.path)})
    except OSError as error:
        raise ConfigError(f"cannot write --output {path}: {error.strerror}") from None


def _analyze(rest: list[str]) -> None:
    from .analysis import EXPERIMENTS, analyze, experiment

    names = ", ".join(EXPERIMENTS)
    if rest in ([], ["-h"], ["--help"]):
        print(f"usage: fasttrain analyze NAME RUN [RUN ...] [options]\n\nNAME: {names}")
        sys.exit(0 if rest else 2)
    name, *words = rest
    chosen = experiment(name)
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    options = tyro.cli(
        chosen.options,
        prog=f"fasttrain analyze {name} RUN [RUN ...]",
        args=["--output" if word == "-o" else word for word in words[count:]],
    )
    if not count:
        raise ConfigError(
            f"analyze {name} needs a run; allowed: run folders, such as runs/demo, before options"
        )
    for path in analyze(name, [Path(word) for word in words[:count]], options):
        print(path)


@dataclass(frozen=True, kw_only=True)
class _Export:
    """Write a trained network, or a subnet of it that stands alone, for another program."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, one checkpoint file, or a file of weights."""
    format: Literal["published", "timm", "torchvision", "safetensors", "onnx"]
    """Whose names and file format."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The file: .onnx, .safetensors, else .pt, .pth or .tar."""
    subnet: Annotated[str, tyro.conf.arg(metavar="D,D,...")] = ""
    """Blocks kept per stage, such as 3,3,6,3; empty: the whole network."""
    checkpoint: Literal["best", "last"] = "best"
    """Which of the folder's checkpoints; the last where there is no best."""
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """A recipe or config.json that a file of weights fits."""
    statistics: Literal["auto", "reestimated", "main"] = "auto"
    """Of batch norm: re-estimated from training images, or as training left them; auto: a subnet's are
    re-estimated where training images are at hand."""
    train: str = ""
    """Training images for the statistics; empty: as in the run."""
    val: str = ""
    """Validation images on which what is written is evaluated; empty: not evaluated."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    side: int = 0
    """Side of an ONNX graph's images, pixels; 0: of the run's validation images."""
    batch: int = 0
    """Images per call of an ONNX graph; 0: any number."""
    force: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write over a file that exists."""


def _export(rest: list[str]) -> None:
    options = tyro.cli(_Export, prog="fasttrain export", args=rest)
    depths = options.subnet.split(",") if options.subnet else []
    if not all(depth.isascii() and depth.isdecimal() for depth in depths):
        raise ConfigError(f"--subnet is {options.subnet}; allowed: blocks per stage, such as 3,3,6,3")
    for name, value in (("--side", options.side), ("--batch", options.batch)):
        if not 0 <= value <= 4096:
            raise ConfigError(f"{name} is {value}; allowed: 0 to 4096")
    from .export import export

    lines = export(
        options.run,
        options.format,
        options.output,
        subnet=[int(depth) for depth in depths],
        which=options.checkpoint,
        recipe=options.recipe,
        statistics=options.statistics,
        train=options.train,
        val=options.val,
        device=options.device,
        side=options.side,
        batch=options.batch,
        force=options.force,
    )
    print(*lines, sep="\n")


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """List the runs in a folder: state, progress, best accuracy, speed, and when they end or ended."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = Path("runs")
    """Holds the runs' folders, or folders of them."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON."""


def _runs(rest: list[str]) -> None:
    options = tyro.cli(_Runs, prog="fasttrain runs", args=rest)
    from .telemetry.files import to_json
    from .telemetry.runs import list_runs, table

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


def _watch(rest: list[str]) -> None:
    options = tyro.cli(_Watch, prog="fasttrain watch", args=rest)
    from .telemetry.watch import watch

    watch(options.run, once=options.once)


@dataclass(frozen=True, kw_only=True)
class _Report:
    """Write one HTML page about runs, finished or not: curves, accuracy, subnets, speed, energy, settings."""

    runs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The runs' folders."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """The page; without it report.html in the first run's folder."""


def _report(rest: list[str]) -> None:
    options = tyro.cli(_Report, prog="fasttrain report", args=rest)
    if not options.runs:
        raise ConfigError("report needs a run; allowed: fasttrain report RUN [RUN ...] [-o FILE]")
    from .report import write_report

    print(f"report: {write_report(options.runs, options.output)}")


def _recipes(rest: list[str]) -> None:
    _expect_nothing("recipes", rest)
    width = max(map(len, RECIPES))
    for name in RECIPES:
        print(f"{name:{width}}  {describe(name)}")


def _show(rest: list[str]) -> None:
    config = _configure("show", rest)
    if sources(config.recipe):
        print(sources(config.recipe), file=sys.stderr)  # stdout is JSON alone
    print(json.dumps(to_dict(config), indent=2))


@dataclass(frozen=True, kw_only=True)
class _CheckData:
    """Decode every image once, in parallel. Exit status 3 if some are bad, unless they are left out."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """A folder with one folder of images per class, a folder of packed tars, or a manifest."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="MANIFEST")] = None
    """Write a manifest for data.train or data.val; without it the check only reports. An interrupted check
    goes on where it was from MANIFEST.part."""
    leave_out_bad: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write the manifest without the bad images, and record them in it."""
    classes: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The class folders' names, one per line, in the order of the labels; without it they are sorted."""
    root: Annotated[str, tyro.conf.arg(metavar="s3://BUCKET/FOLDER")] = ""
    """Where training will find the files, if they are to be uploaded; without it where they are."""


@dataclass(frozen=True, kw_only=True)
class _Pack:
    """Write images into shuffled, uncompressed tars (WebDataset, with DALI's indexes), and read them back."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR_OR_MANIFEST")]
    """A folder with one folder of images per class, which is checked first, or a manifest."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """A new folder for the tars."""
    shards: int
    """Number of tars."""
    shuffle: Annotated[int, tyro.conf.arg(metavar="SEED")] = 0
    """Seed of the images' order in the tars."""
    resize_shorter: int = 0
    """Make images smaller whose shorter side is longer than this, pixels; 0: none."""
    quality: int = 90
    """JPEG quality of images made smaller, 1 to 95."""


def _data(rest: list[str]) -> None:
    commands = {"check": _check_data, "pack": _pack_data, "demo": _demo_data}
    if not rest or rest[0] not in commands:
        raise ConfigError(
            f"data {' '.join(rest)}; allowed: data check DIR, data pack DIR_OR_MANIFEST -o DIR, data demo DIR"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidy up as after Ctrl-C
    commands[rest[0]](rest[1:])


def _check_data(rest: list[str]) -> None:
    options = tyro.cli(_CheckData, prog="fasttrain data check", args=rest)
    from .data import check_data

    check_data(
        options.source,
        output=options.output,
        classes=options.classes,
        leave_out_bad=options.leave_out_bad,
        root=options.root,
    )


def _pack_data(rest: list[str]) -> None:
    options = tyro.cli(_Pack, prog="fasttrain data pack", args=rest)
    for name, value, low, high in (
        ("--resize-shorter", options.resize_shorter, 0, 65_500),  # a JPEG's longest side
        ("--quality", options.quality, 1, 95),
        ("--shuffle", options.shuffle, 0, 2**31 - 1),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value}; allowed: {low} to {high}")
    from .data import pack_data
    from .pipelines.pack import Reencoding

    pack_data(
        options.source,
        options.output,
        shards=options.shards,
        seed=options.shuffle,
        reencoding=Reencoding(options.resize_shorter, options.quality) if options.resize_shorter else None,
    )


def _demo_data(rest: list[str]) -> None:
    if len(rest) != 1 or rest[0].startswith("-"):
        raise ConfigError(f"data demo {' '.join(rest)}; allowed: data demo DIR")
    from .pipelines.digits import write_digits

    write_digits(Path(rest[0]))
    print(f"{rest[0]}/train and {rest[0]}/test hold the digits")


def _demo(rest: list[str]) -> None:
    if len(rest) > 1 or (rest and rest[0].startswith("-")):
        raise ConfigError(f"demo {' '.join(rest)}; allowed: demo [DIR]")
    from .demo import run_demo

    run_demo(Path(rest[0] if rest else "runs/demo"))


def _doctor(rest: list[str]) -> None:
    _expect_nothing("doctor", rest)
    from .doctor import report

    console = Console(soft_wrap=True, highlight=False)
    for subject, finding in report():
        console.print(f"{subject:12} {finding}", markup=False)


def _expect_nothing(command: str, rest: list[str]) -> None:
    if rest:
        raise ConfigError(f"{command} takes no arguments, got {' '.join(rest)}")


if __name__ == "__main__":
    main()
