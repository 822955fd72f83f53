"""Checkpoints: files of tensors and primitives, written whole or not at all, read without running code.

A training checkpoint `X.pt` has a manifest `X.json`, written after it, with its SHA-256 and what it is of:
without a hash one flipped bit would load silently.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from ..compat.sets import check_names, split_key, take
from ..errors import CheckpointError, ConfigError, RunError
from ..models import StagedNetwork

FORMAT = 2
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


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written whole: SHA-256 of its content, in hexadecimal, and its bytes."""

    sha256: str
    bytes: int


class _Hashed:
    """A file to write to that hashes what goes through."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, state: dict[str, Any]) -> Written:
    """Write `state` whole, or leave what was at `path` untouched.

    Raises:
        CheckpointError: the file could not be written.
    """
    return write_whole(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def write_whole(path: Path, write: Callable[[Any], object]) -> Written:
    """Let `write` fill a temporary file beside `path`, and put it in place once the disk has it.

    Raises:
        CheckpointError: the file could not be written; what was at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            hashed = _Hashed(file)
            write(hashed)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # torch's writer puts its own error in its place
            raise KeyboardInterrupt from None
        raise CheckpointError(f"cannot write the checkpoint {path}: {_why(error)}") from None
    finally:
        with suppress(OSError):  # gone already, unless the writing failed
            temporary.unlink()
    return Written(hashed.sha256.hexdigest(), hashed.bytes)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def manifest_of(path: Path) -> Path:
    """Where the manifest of a checkpoint lies."""
    return path.with_suffix(".json")


def save_manifest(path: Path, written: Written, about: Mapping[str, Any]) -> None:
    """Declare the checkpoint at `path` complete.

    Raises:
        CheckpointError: the manifest could not be written.
    """
    values = {"sha256": written.sha256, "bytes": written.bytes, **about}
    text = json.dumps(values, indent=2) + "\n"
    write_whole(manifest_of(path), lambda file: file.write(text.encode()))


def read(path: Path) -> bytes:
    """The content of a checkpoint, as its manifest says, if there is one.

    Raises:
        CheckpointError: it is missing, cannot be read, or is not what was written.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, never raises
        raise CheckpointError(f"no checkpoint at {path}")
    manifest = manifest_of(path)
    try:
        content = path.read_bytes()
        wanted = str(json.loads(manifest.read_text())["sha256"]) if manifest.exists() else None
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path} and its manifest: {_why(error)}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} is damaged: its manifest {manifest.name} holds no SHA-256") from None
    if wanted is not None and hashlib.sha256(content).hexdigest() != wanted:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not its manifest's")
    return content


def decode(content: bytes, path: Path) -> dict[str, Any]:
    """A training checkpoint's state from what `read` gave, on the CPU.

    Raises:
        CheckpointError: damaged, or of another kind.
    """
    state = _parse(io.BytesIO(content), path)
    if not is_training(state):
        raise CheckpointError(f"{path} is not a fasttrain checkpoint of format {FORMAT}")
    for key, kind in CONTENTS.items():
        if not isinstance(state.get(key), kind):
            raise CheckpointError(f"{path} is damaged: it holds no {key}")
    return state


def is_training(state: Any) -> bool:
    """Whether what `parse` gave is a training checkpoint of this format."""
    form = state.get("format") if isinstance(state, dict) else None
    return isinstance(form, int) and form == FORMAT


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, on the CPU.

    Raises:
        CheckpointError: missing, damaged, or of another kind.
    """
    return decode(read(path), path)


def judged_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a state that evaluation judges: their average where the run keeps one."""
    if state.get("ema") is None:
        return state["network"]
    return {
        name.removeprefix("module."): value for name, value in state["ema"].items() if name != "n_averaged"
    }


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """What a part of a checkpoint raises if it does not fit becomes one message.

    Raises:
        CheckpointError: instead of the error of whatever was restored inside.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RunError) and not isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"{path} does not fit this run: {_why(error)}") from None


def load_weights(network: StagedNetwork, path: Path, *, keep: Collection[str] = ()) -> str:
    """Load weights into a network, under whatever names `compat.weights` and `compat.sets` know.

    Args:
        network: of the same architecture and number of classes.
        path: of a file, `FILE#KEY` for one of several sets of weights in it.
        keep: names in the network's state dict that stay as they are, whatever the file holds of them.

    Returns:
        Which set of weights was taken, if there are several; else nothing.

    Raises:
        CheckpointError: missing, damaged, or of another architecture or number of classes.
    """
    path, key = split_key(path)
    content = parse(path)
    own = network.state_dict()
    with restoring(path):
        taken = take(network, content, path, key, without=keep)
        load_state(network, taken.weights | {name: own[name] for name in keep}, path)
    return taken.note


def load_state(network: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """`load_state_dict` with a message that names the file and the first thing that does not fit.

    Raises:
        CheckpointError: another architecture or number of classes, or values that are no numbers: with them
            a network answers, and says nothing.
    """
    check_tensors(network.state_dict(), state, path)
    network.load_state_dict(state)
    check_finite(network.state_dict(), path)  # as they are in the network's own type


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Whether what was loaded is all numbers.

    Raises:
        CheckpointError: one is NaN or infinite.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path} holds NaN or infinite values in {name}; allowed: finite weights")


def check_tensors(wanted: Mapping[str, Tensor], state: Mapping[str, Any], path: Path) -> None:
    """Whether a state holds tensors of these names, shapes and kinds of numbers.

    Raises:
        CheckpointError: it does not; the message names the first that does not fit.
    """
    check_names(wanted.keys(), state.keys(), path)
    for name, tensor in wanted.items():
        given = state[name]
        if not isinstance(given, Tensor) or given.shape != tensor.shape:
            shape = tuple(getattr(given, "shape", ()))
            raise CheckpointError(
                f"{path} does not fit: {name} has shape {shape}, the network's is {tuple(tensor.shape)}"
            )
        fault = _fault(given, tensor.dtype)
        if fault:
            raise CheckpointError(f"{path} does not fit: {name} {fault}")


def _fault(given: Tensor, wanted: torch.dtype) -> str:
    """Why a tensor's values cannot be taken over in a type of numbers; empty: they can."""
    if given.layout != torch.strided or given.is_quantized or given.is_meta:
        kind = "quantized" if given.is_quantized else "empty (meta)" if given.is_meta else str(given.layout)
        return f"is {kind}; allowed: a dense tensor of plain numbers"
    if wanted.is_floating_point:
        return "" if given.is_floating_point() else f"has values of {given.dtype}; allowed: floating point"
    if given.is_complex() or not torch.equal((whole := given.to(wanted)).to(given.dtype), given):
        return f"has values of {given.dtype} that {wanted} does not hold"
    return "" if bool((whole >= 0).all()) else f"is {whole.min()}; allowed: counts, 0 or more"


def parse(path: Path) -> Any:
    """What a file holds, on the CPU: safetensors, or what torch.save wrote of tensors and plain values.

    Raises:
        CheckpointError: missing or damaged, or it holds more than that.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"no checkpoint at {path}")
    return _parse(path, path)


def _parse(source: Path | BinaryIO, path: Path) -> Any:
    """What a file holds, on the CPU; `path` names it in messages, and its suffix its format."""
    try:
        if zipfile.is_zipfile(source) and zipfile.ZipFile(source).testzip():
            raise CheckpointError(f"{path} is damaged: its checksum is wrong")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if not isinstance(source, Path):
            source.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about files that it then refuses
            with torch.serialization.safe_globals(_plain_classes()):
                return torch.load(source, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refused(str(error), path)) from None
    except Exception as error:  # a damaged file fails in many ways, all of them mean the same to the user
        why = _why(error).partition(". ")[0]  # torch goes on about what may have been
        raise CheckpointError(f"cannot read the checkpoint {path}, damaged or none: {why}") from None


def _plain_classes() -> list[Any]:
    """What else may be in a file, none of which runs code: the options that timm's train.py saves, and
    NumPy's numbers, such as an accuracy.
    """
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # NumPy 1 and 2
    return [argparse.Namespace, np.dtype, *numbers, *names]


def _refused(error: str, path: Path) -> str:
    """Why torch's reader of weights refused a file, in our words, and what to do."""
    found = re.search(r"(?:GLOBAL |got <class ')([\w.]+)", error)
    if found is None:
        return f"{path} is damaged, or no file that torch.save wrote"
    refused = f"{path} holds more than tensors and plain values: {found[1][:100]}, whose code is never run"
    if "is blocked" in error:  # no module of weights, but of commands
        return refused
    return (
        f"{refused}; allowed: the weights alone, which, if you trust the file, "
        f"`torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'weights.pth')` writes "
        "(with the file's own key; of a whole module, its state_dict())"
    )


def _why(error: BaseException) -> str:
    """An error's first line, or that of the system error it came from."""
    if isinstance(error.__context__, OSError):
        error = error.__context__
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
