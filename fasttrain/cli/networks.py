"""`fasttrain evaluate`, `export`, `analyze`: of trained networks."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..errors import ConfigError
from ..launch.place import rank
from ..startup import importing

if TYPE_CHECKING:
    from ..reevaluate import Verdict


@dataclass(frozen=True, kw_only=True)
class _Evaluate:
    """Evaluate a run's main network and its subnets."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, one checkpoint file, or a file of weights; FILE#KEY: the weights under KEY in it."""
    checkpoint: Literal["best", "last"] = "best"
    """Which of the folder's checkpoints; the last where there is no best."""
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """A recipe or config.json that a file of weights fits."""
    classes: Annotated[str, tyro.conf.arg(metavar="FILE|natural")] = ""
    """The order of the outputs: a file with the class folders' names, one per line, or natural (as timm sorts
    them); empty: as the weights name them, else as the images' folders are sorted."""
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


def evaluate(rest: list[str]) -> None:
    options = tyro.cli(_Evaluate, prog="fasttrain evaluate", args=rest)
    if options.subnets < -1 or options.batch < 0:
        raise ConfigError(
            f"--subnets {options.subnets} --batch {options.batch}; allowed: at least -1, at least 0"
        )
    with importing():
        from ..reevaluate import evaluate_checkpoint
        from ..telemetry.files import check_output
        from ..trainer import subnets_line

    if options.output:
        check_output("--output", Path(options.output))
    verdict = evaluate_checkpoint(
        options.run,
        which=options.checkpoint,
        recipe=options.recipe,
        classes=options.classes,
        train=options.train,
        val=options.val,
        subnets=options.subnets,
        statistics=options.statistics,
        batch=options.batch,
        device=options.device,
    )
    if rank():
        return
    if options.output:
        _write_verdict(verdict, Path(options.output))
    for note in verdict.notes:
        print(note)
    main_accuracy = verdict.main
    print(
        f"{verdict.path}: Top-1 {main_accuracy.top1:.3f} %, Top-5 {main_accuracy.top5:.3f} %, "
        f"loss {main_accuracy.loss:.4f}, {main_accuracy.images} images"
    )
    for report in verdict.subnets:
        print(subnets_line(report))


def _write_verdict(verdict: Verdict, path: Path) -> None:
    from ..telemetry.files import write_json

    try:
        write_json(path, asdict(verdict) | {"path": str(verdict.path)})
    except OSError as error:
        raise ConfigError(f"cannot write --output {path}: {error.strerror}") from None


@dataclass(frozen=True, kw_only=True)
class _Export:
    """Write a trained network, or a subnet of it that stands alone, for another program."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, one checkpoint file, or a file of weights; FILE#KEY: the weights under KEY in it."""
    format: Literal["published", "timm", "torchvision", "safetensors", "onnx"]
    """Whose names and file format."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The file: .onnx, .safetensors, else .pt, .pth or .tar."""
    subnet: Annotated[str, tyro.conf.arg(metavar="D,D,...")] = ""
    """Blocks kept per stage, such as 3,3,6,3 or 3-3-6-3; empty: the whole network."""
    checkpoint: Literal["best", "last"] = "best"
    """Which of the folder's checkpoints; the last where there is no best."""
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """A recipe or config.json that a file of weights fits."""
    classes: Annotated[str, tyro.conf.arg(metavar="FILE|natural")] = ""
    """The order of the outputs: a file with the class folders' names, one per line, or natural (as timm sorts
    them); empty: as the weights name them, else as the images' folders are sorted."""
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


def export(rest: list[str]) -> None:
    options = tyro.cli(_Export, prog="fasttrain export", args=rest)
    depths = re.split("[,-]", options.subnet) if options.subnet else []
    if not all(depth.isascii() and depth.isdecimal() and len(depth) < 10 for depth in depths):
        raise ConfigError(f"--subnet is {options.subnet}; allowed: blocks per stage, such as 3,3,6,3")
    for name, value in (("--side", options.side), ("--batch", options.batch)):
        if not 0 <= value <= 4096:
            raise ConfigError(f"{name} is {value}; allowed: 0 to 4096")
    with importing():
        from ..export import export

    lines = export(
        options.run,
        options.format,
        options.output,
        subnet=[int(depth) for depth in depths],
        which=options.checkpoint,
        recipe=options.recipe,
        classes=options.classes,
        statistics=options.statistics,
        train=options.train,
        val=options.val,
        device=options.device,
        side=options.side,
        batch=options.batch,
        force=options.force,
    )
    print(*lines, sep="\n")


def analyze(rest: list[str]) -> None:
    from ..analysis import EXPERIMENTS, analyze, experiment

    names = ", ".join(EXPERIMENTS)
    if rest in ([], ["-h"], ["--help"]):
        print(f"usage: fasttrain analyze NAME RUN [RUN ...] [options]\n\nNAME: {names}")
        sys.exit(0 if rest else 2)
    name, *words = rest
    with importing():
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
