"""The sets of weights in one file: raw ones and their averages, under many programs' keys and prefixes.

A set is a mapping of names to tensors at some depth of the file, or the part of one below a prefix of its
names (`model.`, `ema_model.module.`). The names decide which sets are of a network; an average is taken before
raw weights, since it is what its program evaluates. `FILE#KEY` takes the set under KEY.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..models import StagedNetwork
from .weights import to_ours

_AVERAGE = re.compile(r"(?:^|[._])(?:ema|avg|averaged?|swa|shadow|polyak)(?:$|[._])", re.IGNORECASE)
"""In the key of an average: state_dict_ema (timm), model_ema (DeiT, torchvision), ema_state_dict (NVIDIA)."""
_PLAIN = ("state_dict", "model", "network", "model_state_dict")
"""Keys of raw weights, the likeliest first."""
_DEPTH = 4
"""Mappings inside of each other, and prefixes, that are looked through."""
_WHOLE = "."
"""The key of what lies in no mapping of its own."""


@dataclass(frozen=True, slots=True)
class _Set:
    """Weights under a network's names, the key that they are found by, and whether they are an average."""

    key: str
    weights: dict[str, Any]
    average: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """Weights under a network's names; a line where the file holds others too, else nothing."""

    weights: dict[str, Any]
    note: str


def split_key(path: Path) -> tuple[Path, str]:
    """`FILE#KEY` as the file and the key, which is empty without `#`, and where a file has that very name."""
    file, sign, key = str(path).rpartition("#")
    if not sign or not file or os.path.lexists(path):
        return path, ""
    return Path(file), key


def take(
    network: StagedNetwork, content: Any, path: Path, key: str = "", *, without: Collection[str] = ()
) -> Taken:
    """The weights of a network in a file's content.

    Args:
        network: whose names are looked for; it may be without memory.
        content: what the file holds, read without running code.
        path: of the file.
        key: which set; empty: an average, or else the raw weights.
        without: names in the network's state dict that the file may lack.

    Raises:
        CheckpointError: there are none, none under the key, several of the same rank, or those of another
            architecture.
    """
    names = network.state_dict().keys()
    found = list(_sets(network, content, names, without))
    if not found:
        raise CheckpointError(f"{path} holds no weights, which are tensors by their names; {_has(content)}")
    fitting = [each for each in found if _fits(each, names, without)]
    if key:
        named = [each for each in found if each.key == key]
        if not named:
            held = ", ".join(dict.fromkeys(each.key for each in fitting or found))
            raise CheckpointError(f"{path} holds no weights under {key[:100]}; allowed: {held[:300]}")
        check_names(names, named[0].weights, path, without)
        return Taken(named[0].weights, "")
    if not fitting:
        nearest = max(found, key=lambda each: len(names & each.weights.keys()))
        where = "" if nearest.key == _WHOLE else f" (under {nearest.key})"
        check_names(names, nearest.weights, path, without, where)
    chosen = _choose(fitting, path)
    return Taken(chosen.weights, _note(chosen, fitting, found, names, path))


def _choose(fitting: list[_Set], path: Path) -> _Set:
    """An average before raw weights, and of these the likeliest.

    Raises:
        CheckpointError: no key tells which.
    """
    best = [each for each in fitting if each.average] or fitting
    for plain in _PLAIN:
        named = [each for each in best if each.key == plain and not each.average]
        if named:
            return named[0]
    if len(best) > 1:
        held = ", ".join(f"{path}#{each.key}" for each in best[:5])
        kind = "averages" if best[0].average else "sets of weights"
        raise CheckpointError(f"{path} holds {len(best)} {kind} of the network; allowed: {held}")
    return best[0]


def _note(chosen: _Set, fitting: list[_Set], found: list[_Set], names: Collection[str], path: Path) -> str:
    """Which set is taken, and how another is, where there are others."""
    others = ", ".join(f"{path}#{each.key}" for each in fitting if each is not chosen)
    if others:
        kind = "average of the weights" if chosen.average else "weights"
        return f"takes the {kind} under {chosen.key} in {path}; others that it holds: {others}"
    for each in found:
        if each.average and not chosen.average and 2 * len(names & each.weights.keys()) > len(names):
            lacking = min(names - each.weights.keys(), default="")
            why = f"it lacks {lacking}" if lacking else "it holds more than the network"
            return f"takes the weights in {path}, not their average under {each.key}: {why}"
    return ""


def check_names(
    wanted: Collection[str],
    given: Collection[str],
    path: Path,
    without: Collection[str] = (),
    where: str = "",
) -> None:
    """Whether weights have the names of a network.

    Raises:
        CheckpointError: they lack some, or have others besides.
    """
    missing = sorted(set(wanted) - set(given) - set(without))
    extra = sorted(set(given) - set(wanted))
    told = [f"{verb} {_some(them)}" for verb, them in (("lacks", missing), ("has", extra)) if them]
    if told:
        besides = "" if missing else " besides"
        raise CheckpointError(f"{path} is of another architecture: it {' and '.join(told)}{besides}{where}")


def _some(names: list[str]) -> str:
    return f"{names[0][:100]} (and {len(names) - 1} more)" if len(names) > 1 else names[0][:100]


def _has(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"it is a {type(content).__name__}"
    keys = [str(key)[:60] for key in list(content)[:12]]
    return f"it has: {', '.join(keys) or 'nothing'}{', ...' if len(content) > len(keys) else ''}"


def _fits(each: _Set, names: Collection[str], without: Collection[str]) -> bool:
    return set(names) - set(without) <= each.weights.keys() <= set(names)


def _sets(
    network: StagedNetwork, content: Any, names: Collection[str], without: Collection[str]
) -> Iterator[_Set]:
    """All sets of a file, also those that do not fit; a set that does not fit, and its parts that do."""
    swapped = _keeps_averages_as_weights(content)
    for key, tensors in _mappings(content):
        plain = key or _WHOLE
        average = key.startswith("state_dict") if swapped else bool(_AVERAGE.search(key))
        average = average or "n_averaged" in tensors
        whole = _Set(plain, to_ours(network, tensors), average)
        yield whole
        if not _fits(whole, names, without):
            for part_key, part in _parts(key, tensors, len(names) // 2):
                weights = to_ours(network, part)
                each = _Set(part_key or plain, weights, average or bool(_AVERAGE.search(part_key)))
                if _fits(each, names, without):
                    yield each


def _keeps_averages_as_weights(content: Any) -> bool:
    """Whether `state_dict` is the average, as Lightning's WeightAveraging and mmengine's EMAHook save it."""
    if not isinstance(content, Mapping):
        return False
    about = content.get("meta")
    return "averaging_state" in content or (isinstance(about, Mapping) and "mmengine_version" in about)


def _mappings(content: Any, key: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Tensors by their names, outermost first; not those of optimizers."""
    if not isinstance(content, Mapping) or not depth:
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in named.items():
        if not name.startswith("optim"):
            yield from _mappings(value, f"{key}.{name}" if key else name, depth - 1)


def _parts(
    key: str, tensors: Mapping[str, Tensor], least: int, depth: int = _DEPTH
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What lies below each first word of the names, and below each two; or below all of them together, as
    `backbone.` and `head.`, under the key itself.

    Args:
        key: of the whole.
        tensors: of the whole.
        least: parts of fewer tensors are left out.
        depth: how many words.
    """
    split = {name: name.partition(".") for name in tensors}
    parts: dict[str, dict[str, Tensor]] = {}
    joined = {}
    for name, (first, _, rest) in split.items():
        if rest:
            parts.setdefault(first, {})[rest] = joined[rest] = tensors[name]
    if len(parts) > 1 and len(joined) == sum(map(len, parts.values())):
        yield key, joined
    for first, part in parts.items():
        if len(part) > least and depth:
            part_key = f"{key}.{first}" if key else first
            yield part_key, part
            yield from _parts(part_key, part, least, depth - 1)


def classes_of(content: Any, outputs: int) -> tuple[str, ...]:
    """The names of a classifier's outputs, where a file tells them: a list `classes`, or `class_to_idx` as
    torchvision's folders have it; none where it does not, or tells of another number.
    """
    told = content if isinstance(content, Mapping) else {}
    numbers, classes = told.get("class_to_idx"), told.get("classes")
    if isinstance(numbers, Mapping):
        name_of = {number: name for name, number in numbers.items() if isinstance(number, int)}
        classes = [name_of.get(number) for number in range(outputs)]
    if not isinstance(classes, list | tuple) or len(classes) != outputs:
        return ()
    return tuple(classes) if all(isinstance(each, str) for each in classes) else ()
