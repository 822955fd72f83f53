"""Work in other processes outlives what kills one of them, and tells which item did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fasttrain.errors import DataError
from fasttrain.pipelines.workers import Killed, Workers, alone

from .deadly import doubled, failed, killed, named_at_last

PRELOAD = "fasttrain.pipelines.examine"
TASKS = [tuple(range(start, start + 5)) for start in range(0, 60, 5)]


def mark(item: Any, death: Killed) -> Any:
    return f"{item} {death}"


@pytest.mark.parametrize("count", [1, 2])
def test_the_item_that_kills_is_known_and_the_others_have_results(count: int) -> None:
    with Workers(PRELOAD, count) as workers:
        results = [result for found in workers.map(doubled, TASKS, mark) for result in found]
    expected: list[Any] = [2 * item for item in range(60)]
    expected[13], expected[14] = "13 was killed by SIGSEGV", "14 was killed by SIGSEGV"
    assert results == expected


def test_a_process_killed_from_outside_loses_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "7"
    victim.touch()
    tasks = [(tmp_path / str(number),) for number in range(20)]
    with Workers(PRELOAD, 2) as workers:
        results = [result for found in workers.map(named_at_last, tasks, mark) for result in found]
    assert results == [str(number) for number in range(20)]
    assert not victim.exists()


def test_memory_is_blamed_where_the_system_kills() -> None:
    with Workers(PRELOAD, 1) as workers, pytest.raises(DataError, match="short of memory"):
        list(workers.map(killed, [(1, 2)], mark))


def test_alone_hands_over_what_came_of_it() -> None:
    assert alone(doubled, (1, 2), PRELOAD) == [2, 4]
    with pytest.raises(ValueError, match=r"no \(3,\)"):
        alone(failed, (3,), PRELOAD)
    with pytest.raises(Killed, match="was killed by SIGSEGV"):
        alone(doubled, (13,), PRELOAD)
