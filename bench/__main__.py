"""`python -m bench <command> [options]`: one module of this package per command."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import torch

from fasttrain.errors import INTERRUPTED, ConfigError, OutOfMemoryError, RunError, instead
from fasttrain.startup import begin
from fasttrain.streams import outlasting_readers

COMMANDS = {
    "step": "one training step: seconds, FLOPs and memory of CT, ST, ST++ and the published code",
    "checks": "whether the fused operations and the step are right on this device",
    "kernels": "each fused operation: speed and memory against plain PyTorch (GPU)",
    "walk": "evaluating all subnets of a space in one walk, or one by one",
    "data": "the training pipeline against torch's DataLoader, stage by stage",
    "decoders": "ways from encoded images to random crops",
    "wait": "what a training step waits for its images",
    "save": "by how much a checkpoint in the background delays a step",
    "growth": "how a step's cost grows with K, R and depth, against separate passes (computed)",
    "plan": "hours and energy of a recipe on so many GPUs, and its scaling to 1,000 (a model)",
    "study": "accuracy of the training methods on small images, over seeds",
    "suite": "all of these, correctness first, in a given time",
    "report": "the README's tables from bench/results",
}
"""Command to what it measures; `bench.<command>.main(argv)` runs it."""


def usage() -> str:
    """What `python -m bench --help` prints."""
    lines = ["usage: python -m bench <command> [options]", "", "commands (each has --help):"]
    return "\n".join(lines + [f"  {name:10}{text}" for name, text in COMMANDS.items()])


def dispatch(argv: Sequence[str]) -> None:
    """Run one command.

    Raises:
        ConfigError: no command, or an unknown one.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(usage())
        return
    if not argv or argv[0] not in COMMANDS:
        command = argv[0] if argv else ""
        raise ConfigError(f"command is {command!r}; {instead(command, COMMANDS)}")
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: kernels are checked on a CPU too
    importlib.import_module(f"bench.{argv[0]}").main(argv[1:])


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit status. Errors that a user can mend are one line on stderr."""
    with outlasting_readers():
        return _run(argv)


def _run(argv: Sequence[str]) -> int:
    try:
        dispatch(begin(argv))
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except torch.OutOfMemoryError as error:
        print(f"error: out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
        return OutOfMemoryError.exit_status
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return RunError.exit_status
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        print("error: out of memory: this machine's does not suffice", file=sys.stderr)
        return OutOfMemoryError.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
