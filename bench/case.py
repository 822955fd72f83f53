"""What a module of `bench.kernels`, one per operation, tells the benchmarks: what to check, what to time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .accuracy import Comparison


@dataclass(frozen=True, slots=True)
class Check:
    """A correctness check.

    Attributes:
        label: what is checked.
        compare: runs it; its results, each against plain PyTorch and float64.
    """

    label: str
    compare: Callable[[], Iterable[Comparison]]


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of one size, and the implementations to be timed on them.

    Attributes:
        shape: of the inputs, in words: one row of the table.
        moved: bytes that any implementation must move through device memory in one call: each input read
            once and each output written once, in each of the passes that the data's dependence forces.
        prepare: makes one set of random inputs; the bench makes several and rotates among them, so that
            no call finds its inputs in the cache.
        calls: implementation (`triton`, `eager`, `compile`, `liger`) to one forward and backward on a set.
    """

    shape: str
    moved: int
    prepare: Callable[[], Any]
    calls: Mapping[str, Callable[[Any], Any]]
