"""The command line: `fasttrain train|check|evaluate|runs|watch|...`. Alone in knowing tyro."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .. import __version__
from ..errors import INTERRUPTED, ConfigError, RunError, brief, instead
from ..launch.place import is_first
from ..launch.status import tell_exit
from ..startup import begin
from ..streams import outlasting_readers
from .about import doctor, recipes, show
from .compare import compare
from .data import data
from .networks import analyze, evaluate, export
from .runs import report, runs, watch
from .training import check, demo, nips22, train

USAGE = """usage: fasttrain COMMAND ...

  train RECIPE [--section.field value ...]              train, or go on; RECIPE may be a run's config.json
  check RECIPE [--section.field value ...]              look for mistakes in a run before it is started
        [--processes N] [--nodes N]                     with N processes on each of N machines
  compare RECIPE RECIPE ... --budget N [--help]         short runs side by side: cost and accuracy
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
  --version                                             print the version

fasttrain train RECIPE --help lists every field."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; exits with the status of `fasttrain.errors`, whether its output is read or not."""
    with outlasting_readers():
        _run(argv)


def _run(argv: Sequence[str] | None) -> None:
    arguments: list[str] = []
    try:
        arguments = begin(sys.argv[1:] if argv is None else argv)
        if not arguments or arguments[0] in ("-h", "--help"):
            print(USAGE, flush=True)
            sys.exit(0 if arguments else 2)
        if arguments == ["--version"]:
            print(f"fasttrain {__version__}", flush=True)
            return
        _dispatch(arguments[0], arguments[1:])
        print(end="", flush=True)  # what cannot be written is told
    except RunError as error:
        _fail(str(error), error.exit_status, error.speaks)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except OSError as error:
        _fail(brief(str(error)), 1)
    except SystemExit as error:
        if error.code:  # tyro has said what is wrong
            tell_exit(ConfigError.exit_status, "a wrong command line")
        raise
    except Exception as error:  # a fault of the program: its traceback is shown
        tell_exit(RunError.exit_status, f"{type(error).__name__}: {error}")
        raise
    if arguments[:1] in (["train"], ["nips22"]):
        tell_exit(0, "done")


def _dispatch(command: str, rest: list[str]) -> None:
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": train,
        "check": check,
        "compare": compare,
        "evaluate": evaluate,
        "export": export,
        "analyze": analyze,
        "runs": runs,
        "watch": watch,
        "nips22": nips22,
        "report": report,
        "recipes": recipes,
        "show": show,
        "data": data,
        "demo": demo,
        "doctor": doctor,
    }
    if command not in commands:
        raise ConfigError(f"unknown command {command!r}; {instead(command, commands)}")
    own_help = ("compare", "nips22", "evaluate", "export", "analyze", "runs", "watch", "report", "data")
    if rest[:1] in (["-h"], ["--help"]) and command not in own_help:
        print(USAGE)
        return
    commands[command](rest)


def _fail(message: str, status: int, speaks: bool | None = None) -> NoReturn:
    if is_first() if speaks is None else speaks:
        who = "" if is_first() else f"rank {os.environ['RANK']}: "
        print(f"fasttrain: {who}{message}", file=sys.stderr)
    tell_exit(status, message)
    sys.exit(status)
