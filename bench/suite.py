"""`python -m bench suite`: correctness on this device first, then step, kernels (GPU), evaluation walk, data.

Each part writes its own file, so that a suite that is cut off keeps what it has. What is wrong is not timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fasttrain.errors import ConfigError, RunError

from . import checks, kernels, measure, step, walk
from .arguments import Parser, check_minutes
from .checks import WrongResultError
from .rows import default_output

_CPU_STEP = ("--model", "resnet50", "--crop", "200", "--batch", "8", "--warmup", "0")
_GPU_STEP = ("--model", "resnet50", "--crop", "200", "--batch", "256", "--warmup", "1")
_CPU_MODES = "ct,naive,stpp-r1,stpp-coupled,st"
_GPU_MODES = (
    "ct,ct:plain,ct:fp16,ct:block,timm:bf16,timm:fp16,naive,"
    "stpp-r1,stpp-r1:plain,stpp-r2,stpp-coupled,stpp-split,st,st-split"
)
_GPU_STEP_224 = (
    *("--model", "resnet50", "--crop", "224", "--batch", "256", "--warmup", "1"),
    *("--modes", "ct,timm:bf16,stpp-r1,st"),
)
_STEP_SHARE, _STEP_224_SHARE = 0.5, 0.1
"""Of the minutes; the other parts take what they need."""


def main(argv: Sequence[str]) -> None:
    """Run all parts.

    Raises:
        ConfigError: an option's value that is not allowed.
        DataError: --images without images.
        WrongResultError: something computes wrong results here; the rest is measured before.
    """
    options = _parser().parse_args(list(argv))
    device = measure.choose_device(options.device)
    check_minutes(options)
    if options.compare:
        compare(options)
        return
    begin = time.monotonic()
    wrong: list[str] = []
    for name, part in _parts(options, device, wrong):
        print(f"== {name} ({time.monotonic() - begin:.0f} s)", flush=True)
        try:
            part()
        except WrongResultError as error:
            print(f"{name}: {error}")
    print(f"== done ({time.monotonic() - begin:.0f} s)")
    if wrong:
        raise WrongResultError(f"wrong on {device}: {', '.join(wrong)}")


def _parts(
    options: argparse.Namespace, device: torch.device, wrong: list[str]
) -> list[tuple[str, Callable[[], None]]]:
    """Name to work, in order; the first part fills `wrong`, by which the others go."""
    output = options.output

    def file(bench: str) -> Path:
        return output / f"{bench}.csv" if output else default_output(bench, device)

    def path(bench: str) -> list[str]:
        return ["-o", str(file(bench))]

    chosen = ["--device", device.type]
    gpu = device.type == "cuda"
    settings, modes = (_GPU_STEP, _GPU_MODES) if gpu else (_CPU_STEP, _CPU_MODES)
    steps = [*chosen, *settings, "--modes", modes, "--minutes", f"{_STEP_SHARE * options.minutes:g}"]
    walks = [*chosen, *(("--crop", "224", "--batch", "256") if gpu else ()), "--rounds", "1"]
    parts: list[tuple[str, Callable[[], None]]] = [
        ("checks", lambda: wrong.extend(checks.run(checks.SUBJECTS, device, file("checks")))),
        ("step", lambda: measured_step(wrong, [*steps, *path("step")])),
        ("walk", lambda: walk.main([*walks, *path("walk")])),
    ]
    if gpu:
        large = [*chosen, *_GPU_STEP_224, "--minutes", f"{_STEP_224_SHARE * options.minutes:g}"]
        parts[2:2] = [
            ("kernels", lambda: kernels.main([*chosen, *path("kernels")])),
            ("step-224", lambda: measured_step(wrong, [*large, *path("step-224")])),
        ]
    if options.images and importlib.util.find_spec("nvidia.dali"):
        from fasttrain.pipelines.manifest import open_images

        from . import data, decoders

        count = min(64, len(open_images(str(options.images)).files))  # a folder that is wrong ends it now
        sampled = [*chosen, "--batch", str(count), "--batches", "16", "--rounds", "1"]
        images = [str(options.images), *sampled]
        parts.append(("data", lambda: data.main([*images, *path("data")])))
        if gpu:
            parts.append(("decoders", lambda: decoders.main([*images, *path("decoders")])))
    else:
        print("data: left out (it needs --images DIR and DALI)")
    return parts


def measured_step(wrong: Sequence[str], arguments: list[str]) -> None:
    """Time the step unless it is among what is wrong.

    Raises:
        WrongResultError: it is.
    """
    if "step" in wrong:
        raise WrongResultError("the step is wrong, and not timed")
    step.main(arguments)


def compare(options: argparse.Namespace) -> None:
    """Run the suite of another commit, then this one's, with the same options, and print where to look.

    Raises:
        ConfigError: not a commit.
        RunError: the other commit's suite failed.
    """
    here = Path(__file__).parent.parent
    rest = ["--minutes", f"{options.minutes:g}"] + (["--device", options.device] if options.device else [])
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        added = subprocess.run(
            ["git", "worktree", "add", "--detach", str(tree), options.compare],
            cwd=here,
            capture_output=True,
            text=True,
        )
        if added.returncode:
            raise ConfigError(f"--compare is {options.compare!r}; allowed: a commit of this repository")
        try:
            for name, where in ((options.compare, tree), ("this", here)):
                output = Path.cwd() / f"bench-{name}"
                print(f"== {name}: {output}", flush=True)
                command = [sys.executable, "-m", "bench", "suite", *rest, "-o", str(output)]
                environment = os.environ | {"PYTHONPATH": str(where)}  # its own fasttrain
                if subprocess.run(command, cwd=where, env=environment).returncode:
                    raise RunError(f"the suite of {name} failed")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=here, capture_output=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bench suite", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add(
        "--minutes",
        type=float,
        default=8,
        help="half of it for the steps at crop 200 (%(default)s); correctness comes on top",
    )
    add("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is a GPU")
    add("--images", type=Path, help="folder with one folder of images per class, for the data part")
    add("--compare", default="", metavar="COMMIT", help="run that commit's suite too, side by side")
    add("-o", "--output", type=Path, help="folder for the CSV files (default: bench/results/<device>)")
    return parser
