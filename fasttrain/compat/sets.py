"""The sets of weights in one file: raw ones and their averages, under many programs' keys and prefixes.

A set is a mapping of names to tensors at some depth of the file, or the part of one below a prefix of its
names (`model.`, `ema_model.module.`). The names decide which sets are of a network; an average is taken
before raw weights, since it is what its program evaluates. `FILE#KEY` takes the set under KEY.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, replace
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
_MOST = 1_000_000
"""Values of one file that are looked at."""
_DEPTH = 4
"""Mappings inside of each other, and prefixes, that are looked through."""
_WHOLE = "."
"""The key of what lies in no mapping of its own."""


@dataclass(frozen=True, slots=True)
class _Set:
    """Weights under a network's names, the key that they are found by, whether they are an average, and
    whether they are the network's, as far as names tell.
    """

    key: str
    weights: dict[str, Any]
    average: bool
    fits: bool


@dataclass(frozen=True, slots=True)
class _Names:
    """Of a network's state dict, and those among them that a file may lack."""

    all: Set[str]
    optional: frozenset[str]

    def fit(self, weights: Mapping[str, Any]) -> bool:
        return self.all - self.optional <= weights.keys() <= self.all


@dataclass(frozen=True, slots=True)
class Taken:
    """Weights under a network's names; a line where the file holds others too, else nothing."""

    weights: dict[str, Any]
    note: str


def split_key(path: Path) -> tuple[Path, str]:
    """`FILE#KEY` as the file and the key, which is empty without `#`, and where a file has that very name."""
    text = str(path)
    places = [] if os.path.lexists(path) else [match.start() for match in re.finditer("(?<=.)#", text)]
    if not places:
        return path, ""
    place = next((each for each in places if os.path.exists(text[:each])), places[-1])  # keys may hold a #
    return Path(text[:place]), text[place + 1 :]


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
    found = list(_sets(network, content, _Names(names, frozenset(without)), path))
    if not found:
        raise CheckpointError(f"{path} holds no weights, which are tensors by their names; {_has(content)}")
    fitting = [each for each in found if each.fits]
    if key:
        below = [each for each in found if each.key == key] or [
            each for each in fitting if each.key.startswith(f"{key}.")
        ]
        if len(below) > 1:
            raise CheckpointError(f"{path} holds {len(below)} sets under {key[:100]}; allowed: a key of one")
        if not below:
            held = ", ".join(dict.fromkeys(each.key for each in fitting or found))
            raise CheckpointError(f"{path} holds no weights under {key[:100]}; allowed: {held[:300]}")
        check_names(names, below[0].weights.keys(), path, without)
        return Taken(below[0].weights, "")
    if not fitting:
        nearest = max(found, key=lambda each: len(names & each.weights.keys()))
        check_names(names, nearest.weights.keys(), path, without, nearest.key)
    chosen = _choose(fitting, path)
    return Taken(chosen.weights, _note(chosen, found, names, path))


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


def _note(chosen: _Set, found: list[_Set], names: Set[str], path: Path) -> str:
    """Which set is taken, and how another is, where there are others."""
    others = ", ".join(f"{path}#{each.key}" for each in found if each.fits and each is not chosen)
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
    wanted: Set[str], given: Set[str], path: Path, without: Collection[str] = (), key: str = _WHOLE
) -> None:
    """Whether weights, which lie under a key of a file, have the names of a network.

    Raises:
        CheckpointError: they lack some, or have others besides.
    """
    missing, extra = sorted(wanted - given - set(without)), sorted(given - wanted)
    told = [f"{verb} {_some(them)}" for verb, them in (("lacks", missing), ("has", extra)) if them]
    if told:
        besides = "" if missing else " besides"
        where = "" if key == _WHOLE else f" under {key}"
        raise CheckpointError(f"{path} is of another architecture: it {' and '.join(told)}{besides}{where}")


def _some(names: list[str]) -> str:
    return f"{names[0][:100]} (and {len(names) - 1} more)" if len(names) > 1 else names[0][:100]


def _has(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"it is a {type(content).__name__}"
    keys = [str(key)[:60] for key in list(content)[:12]]
    return f"it has: {', '.join(keys) or 'nothing'}{', ...' if len(content) > len(keys) else ''}"


def _sets(network: StagedNetwork, content: Any, names: _Names, path: Path) -> Iterator[_Set]:
    """All sets of a file; of a mapping that is not of the network its parts that are, or else itself."""
    swapped = _keeps_averages_as_weights(content)

    def part_of(key: str, tensors: Mapping[str, Tensor], inside_average: bool = False) -> _Set:
        average = key.startswith("state_dict") if swapped else bool(_AVERAGE.search(key))
        average = average or inside_average or "n_averaged" in tensors
        weights = to_ours(network, tensors)
        return _Set(key or _WHOLE, weights, average, names.fit(weights))

    def resolve(key: str, tensors: Mapping[str, Tensor], whole: _Set, depth: int = _DEPTH) -> list[_Set]:
        if whole.fits or not depth:
            return [whole]
        joined, parts = _parts(tensors)
        together = part_of(key, joined, whole.average)
        if together.fits:
            return [together]
        fitting: list[_Set] = []
        for first, part in parts.items():
            if 2 * len(part) > len(names.all):
                part_key = f"{key}.{first}" if key else first
                inner = resolve(part_key, part, part_of(part_key, part, whole.average), depth - 1)
                fitting += [each for each in inner if each.fits]
        if len(fitting) == 1:  # so the key of the whole tells it
            return [replace(fitting[0], key=whole.key)]
        return fitting or [whole]

    for key, tensors in _mappings(content, path):
        yield from resolve(key, tensors, part_of(key, tensors))


def _keeps_averages_as_weights(content: Any) -> bool:
    """Whether `state_dict` is the average, as Lightning's WeightAveraging and mmengine's EMAHook save it."""
    if not isinstance(content, Mapping):
        return False
    about = content.get("meta")
    return "averaging_state" in content or (isinstance(about, Mapping) and "mmengine_version" in about)


def _mappings(content: Any, path: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Tensors by their names, outermost first; not those of optimizers.

    Raises:
        CheckpointError: more values than networks have: mappings that share others stand for any number.
    """
    waiting, looked_at = deque([("", content, 0)]), 0
    while waiting:
        key, mapping, depth = waiting.popleft()
        if not isinstance(mapping, Mapping):
            continue
        looked_at += len(mapping)
        if looked_at > _MOST:
            raise CheckpointError(f"{path} holds more than {_MOST} values in mappings; allowed: weights")
        named = {name: value for name, value in mapping.items() if isinstance(name, str)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        if tensors:
            yield key, tensors
        if depth + 1 < _DEPTH:
            inner = ((f"{key}.{name}" if key else name, value) for name, value in named.items())
            waiting.extend((below, value, depth + 1) for below, value in inner if not _is_optimizer(below))


def _is_optimizer(key: str) -> bool:
    return key.rpartition(".")[2].startswith("optim")


def _parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """What lies below the first words of the names: of all of them together, such as `backbone.` and `head.`,
    unless two would have one name, and of each.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            parts.setdefault(first, {})[rest] = tensor
    joined = {name: tensor for part in parts.values() for name, tensor in part.items()}
    return (joined if len(joined) == sum(map(len, parts.values())) else {}), parts


def classes_of(content: Any) -> tuple[str, ...]:
    """The names of a classifier's outputs, where a file tells them: a list `classes`, or `class_to_idx` as
    torchvision's folders have it; none where it does not.
    """
    told = content if isinstance(content, Mapping) else {}
    numbers, classes = told.get("class_to_idx"), told.get("classes")
    if isinstance(numbers, Mapping):
        name_of = {number: name for name, number in numbers.items() if isinstance(number, int)}
        classes = [name_of.get(number) for number in range(len(numbers))]
    if not isinstance(classes, list | tuple) or not all(isinstance(each, str) for each in classes):
        return ()
    return tuple(classes)
