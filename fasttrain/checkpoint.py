"""Checkpoints: files of tensors and primitives, written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import CheckpointError, ConfigError, RunError

FORMAT = 1
CONTENTS = {
    "config": dict,
    "classes": list,
    "position": dict,
    "loader": dict,
    "network": dict,
    "optimizer": dict,
    "scaler": dict,
}
"""What a training checkpoint holds at least."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to a temporary file beside `path`, then put it in place.

    Raises:
        CheckpointError: the file could not be written; what was at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # torch's writer puts its own error in its place
            raise KeyboardInterrupt from None
        raise CheckpointError(f"cannot write the checkpoint {path}: {_why(error)}") from None
    finally:
        with suppress(OSError):  # gone already, unless the writing failed
            temporary.unlink()


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, on the CPU.

    Raises:
        CheckpointError: missing, damaged, or of another kind.
    """
    state = _read(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a fasttrain checkpoint of format {FORMAT}")
    for key, kind in CONTENTS.items():
        if not isinstance(state.get(key), kind):
            raise CheckpointError(f"{path} is damaged: it holds no {key}")
    return state


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """What a part of a checkpoint raises if it does not fit becomes one message.

    Raises:
        CheckpointError: instead of the error of whatever was restored inside.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RunError) and not isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"{path} does not fit this run: {_why(error)}") from None


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict of timm's and torchvision's names, or a checkpoint that holds one, into a network.

    Args:
        network: of the same architecture and number of classes.
        path: `.safetensors`, or what torch.save wrote: a state dict, alone or under "network",
            "state_dict" or "model".

    Raises:
        CheckpointError: missing, damaged, or of another architecture or number of classes.
    """
    state = _read(path)
    for key in ("network", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no state dict")
    with restoring(path):
        load_state(network, state, path)


def load_state(network: nn.Module, state: dict[str, Any], path: Path) -> None:
    """`load_state_dict` with a message that names the file and the first thing that does not fit.

    Raises:
        CheckpointError: another architecture or number of classes.
    """
    wanted = network.state_dict()
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        what = f"lacks {missing[0]} (and {len(missing) - 1} more)" if missing else f"has {extra[0]} besides"
        raise CheckpointError(f"{path} is of another architecture: it {what}")
    for name, tensor in wanted.items():
        given = state[name]
        if not isinstance(given, torch.Tensor) or given.shape != tensor.shape:
            shape = tuple(getattr(given, "shape", ()))
            raise CheckpointError(
                f"{path} does not fit: {name} has shape {shape}, the network's is {tuple(tensor.shape)}"
            )
    network.load_state_dict(state)


def _read(path: Path) -> Any:
    if not os.path.isfile(path):  # unlike Path.is_file, never raises
        raise CheckpointError(f"no checkpoint at {str(path)[:300]}")
    try:
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
            raise CheckpointError(f"{path} is damaged: its checksum is wrong")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values, which is never loaded"
        ) from None
    except Exception as error:  # a damaged file fails in many ways, all of them mean the same to the user
        raise CheckpointError(f"cannot read the checkpoint {path}: {_why(error)}") from None


def _why(error: BaseException) -> str:
    """An error's first line, or that of the system error it came from."""
    if isinstance(error.__context__, OSError):
        error = error.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
