"""Where a loader stands, and what it was loading: enough to go on with the very next batch, or to refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fasttrain.errors import CheckpointError

MATTERS = ("images", "global_batch", "seed", "augmentation", "sizes", "dali")
"""Parts of a fingerprint that must be equal to go on: with them the coming batches are the same."""


def check_fingerprint(ours: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Compare a loader's fingerprint with that of a recorded state.

    The world size may differ: the global batches are the same, each process takes other rows of them.

    Raises:
        CheckpointError: the state has none, or a part that matters differs; the message names both sides.
    """
    theirs = state.get("fingerprint")
    if not isinstance(theirs, Mapping):
        raise CheckpointError("cannot go on in the data: the state has no fingerprint; allowed: a loader's")
    for name in MATTERS:
        if ours[name] != theirs.get(name):
            raise CheckpointError(
                f"cannot go on in the data: {name.replace('_', ' ')} is {_short(ours[name])} here, was "
                f"{_short(theirs.get(name))}; allowed: the run's own"
            )


def read_position(state: Mapping[str, Any], steps: int) -> tuple[int, int]:
    """Epoch and step of a loader's state; `steps` are those of an epoch.

    Raises:
        CheckpointError: there are none, or not such as a loader writes.
    """
    epoch, step = state.get("epoch"), state.get("step")
    if type(epoch) is not int or type(step) is not int or not (epoch >= 0 and 0 <= step < steps):
        raise CheckpointError(
            f"cannot go on in the data: the state's epoch is {epoch!r}, its step {step!r}; allowed: whole "
            f"numbers, at least 0, the step at most {steps - 1}"
        )
    return epoch, step


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
