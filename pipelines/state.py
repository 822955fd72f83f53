"""Where a loader stands, and what it was loading: enough to go on with the very next batch, or to refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fasttrain.errors import CheckpointError

MATTERS = ("images", "global_batch", "seed", "augmentation", "sizes", "dali")
"""Parts of a fingerprint that must be equal to go on: with them the coming batches are the same."""


def check_fingerprint(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Compare a loader's fingerprint with that of a recorded state.

    The world size may differ: the global batches are the same, each process takes other rows of them.

    Raises:
        CheckpointError: a part that matters differs; the message names both sides.
    """
    for name in MATTERS:
        if ours[name] != theirs.get(name):
            raise CheckpointError(
                f"cannot go on in the data: {name.replace('_', ' ')} is {_short(ours[name])} here, was "
                f"{_short(theirs.get(name))}; allowed: the run's own"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
