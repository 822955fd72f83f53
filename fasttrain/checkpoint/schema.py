"""What a training checkpoint holds: the type and the range of each value.

A hash tells that a file is what was written, not that what was written makes sense. So every value is looked
at before any is used. Names and shapes of tensors are the network's and the optimizer's matter: they are
compared where these are restored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError

Check = Callable[[Any, str], str]
"""From a value and its name to what is wrong with it, or nothing."""


def check(state: Mapping[str, Any], path: Path, parts: Collection[str] = ()) -> None:
    """Whether a training checkpoint's values are of the types and in the ranges that a run writes.

    Args:
        state: as `decode` gives it.
        path: of its file.
        parts: those that are looked at; none: all.

    Raises:
        CheckpointError: one is missing or is not; the message names it.
    """
    for name in parts or _STATE:
        wrong = _field(state, name, _STATE[name], "")
        if wrong:
            raise CheckpointError(f"{path} is damaged: {wrong}")


def _field(values: Mapping[str, Any], name: str, field: Check, inside: str) -> str:
    full = f"{inside}.{name}" if inside else name
    if name not in values and field(None, full):  # what may be nothing may be missing
        return f"it lacks {full}"
    return field(values.get(name), full)


def _wrong(value: Any, name: str, allowed: str) -> str:
    if isinstance(value, Tensor):
        shown = f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    elif isinstance(value, int | float | str | None):
        shown = (
            repr(value)[:60] if not isinstance(value, int) or abs(value) < 10**60 else "beyond all numbers"
        )
    else:
        shown = f"a {type(value).__name__}"
    return f"{name} is {shown}; allowed: {allowed}"


def _whole(low: int = 0, high: int = 2**53) -> Check:
    """A whole number in a range."""

    def look(value: Any, name: str) -> str:
        fits = type(value) is int and low <= value <= high
        return "" if fits else _wrong(value, name, f"a whole number, {low} to {high}")

    return look


def _real(low: float = 0.0, high: float = 1e300) -> Check:
    """A number in a range."""

    def look(value: Any, name: str) -> str:
        fits = type(value) in (int, float) and low <= value <= high  # NaN compares false
        return "" if fits else _wrong(value, name, f"a number, {low:g} to {high:g}")

    return look


def _any_float(value: Any, name: str) -> str:
    return "" if type(value) is float else _wrong(value, name, "a number")


def _kind(kind: type, allowed: str) -> Check:
    return lambda value, name: "" if isinstance(value, kind) else _wrong(value, name, allowed)


def _fields(**fields: Check) -> Check:
    """A dictionary with these values; others in it are nobody's matter."""

    def look(value: Any, name: str) -> str:
        if not isinstance(value, Mapping):
            return _wrong(value, name, f"a dictionary of {', '.join(fields)}")
        return next(filter(None, (_field(value, key, field, name) for key, field in fields.items())), "")

    return look


def _each(key: type, field: Check) -> Check:
    """A dictionary of any size, whose values are all of one kind."""

    def look(value: Any, name: str) -> str:
        if not isinstance(value, Mapping) or not all(type(each) is key for each in value):
            return _wrong(value, name, "a dictionary")
        return next(filter(None, (field(each, f"{name}.{key}") for key, each in value.items())), "")

    return look


def _row(*fields: Check) -> Check:
    """A list of so many values."""

    def look(value: Any, name: str) -> str:
        if not isinstance(value, list) or len(value) != len(fields):
            return _wrong(value, name, f"a list of {len(fields)}")
        pairs = enumerate(zip(value, fields, strict=True))
        return next(filter(None, (field(each, f"{name}.{place}") for place, (each, field) in pairs)), "")

    return look


def _rows(field: Check, *, least: int = 0) -> Check:
    """A list of values of one kind."""

    def look(value: Any, name: str) -> str:
        if not isinstance(value, list) or len(value) < least:
            return _wrong(value, name, f"a list{f' of {least} or more' if least else ''}")
        return next(filter(None, (field(each, f"{name}.{place}") for place, each in enumerate(value))), "")

    return look


def _or_nothing(field: Check) -> Check:
    return lambda value, name: "" if value is None else field(value, name)


def _or_empty(field: Check) -> Check:
    return lambda value, name: "" if value == {} else field(value, name)


def _tensor(value: Any, name: str) -> str:
    """A tensor; its shape is looked at where it is restored."""
    return "" if isinstance(value, Tensor) else _wrong(value, name, "a tensor")


def _vector(length: int) -> Check:
    """So many finite numbers."""

    def look(value: Any, name: str) -> str:
        fits = isinstance(value, Tensor) and tuple(value.shape) == (length,) and not value.is_complex()
        fits = fits and bool(value.isfinite().all())
        return "" if fits else _wrong(value, name, f"{length} finite numbers in a tensor")

    return look


_COUNT, _PERCENT, _TENSORS = _whole(), _real(0, 100), _each(str, _tensor)
_RANDOM = _fields(
    python=_row(_whole(3, 3), _rows(_whole(0, 2**32 - 1), least=625), _or_nothing(_real(-1e3, 1e3))),
    numpy=_row(_vector(624), _whole(0, 624), _whole(0, 1), _real(-1e3, 1e3)),
    torch=_tensor,
    cuda=_or_nothing(_tensor),
)
_INTERVAL = _fields(
    sums=_vector(7),
    steps=_COUNT,
    images=_COUNT,
    flops=_real(),
    lr=_real(),
    watch=_row(_real(), _real()),
)
_STATE: dict[str, Check] = {
    "config": _kind(dict, "a dictionary of sections"),
    "classes": _rows(_kind(str, "a class's name"), least=1),
    "position": _fields(epoch=_COUNT, step=_COUNT, global_step=_COUNT),
    "evaluated": _COUNT,
    "main": _or_nothing(_fields(top1=_PERCENT, top5=_PERCENT, loss=_any_float, images=_COUNT)),
    "best": _real(-math.inf, 100),
    "trained": _row(_COUNT, _real()),
    "skipped": _COUNT,
    "scaler": _or_empty(
        _fields(
            scale=_real(1e-30, 1e30),
            growth_factor=_real(1, 1e6),
            backoff_factor=_real(1e-6, 1),
            growth_interval=_whole(1),
            _growth_tracker=_COUNT,
        )
    ),
    "loader": _fields(epoch=_COUNT, step=_COUNT, fingerprint=_kind(dict, "a dictionary")),
    "network": _TENSORS,
    "auxiliary": _or_nothing(_TENSORS),
    "optimizer": _fields(
        state=_each(int, _each(str, _tensor)),
        param_groups=_rows(_fields(params=_rows(_COUNT))),
    ),
    "ema": _or_nothing(_TENSORS),
    "ranks": _rows(
        _fields(random=_RANDOM, network=_TENSORS, ema=_or_nothing(_TENSORS), interval=_INTERVAL), least=1
    ),
}
"""Of the state that `State.capture` makes; `numpy` and `python` are generators of 624 words."""
