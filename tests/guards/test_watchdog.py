"""How long silence may be; no time passes in these tests but what they say."""

from __future__ import annotations

from typing import NoReturn

import pytest

from fasttrain.errors import RunError
from fasttrain.guards import watchdog as module
from fasttrain.guards.watchdog import KNOWN, PATIENCE, Watchdog


class Ended(Exception):
    """The process would have ended."""


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The main thread's processor time, which a test may set; the end of the process is an exception."""

    def leave(error: RunError, who: str = "") -> NoReturn:
        raise Ended(f"{error.exit_status} {who}{error}")

    seconds = [0.0]
    monkeypatch.setattr(module, "leave", leave)
    monkeypatch.setattr(module, "_computed", lambda: seconds[0])
    return seconds


def steps(watchdog: Watchdog, *seconds: float) -> None:
    for each in seconds:
        watchdog.pass_by(each)
        watchdog.beat()


def test_others_wait_for_so_long_and_no_longer(capfd: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog(300, 100)
    steps(watchdog, 300, 100, 5, 100)
    with pytest.raises(Ended, match=r"^7 rank 0: no step was done for 100 s"):
        watchdog.pass_by(100.5)
    assert "thread 0x" in capfd.readouterr().err
    with pytest.raises(Ended, match="for 300 s"):
        Watchdog(300, 100).pass_by(301)


@pytest.mark.parametrize(("seconds", "words"), [(98.4, "main thread computed 98 s"), (0.2, "computed 0 s")])
def test_a_process_that_computes_is_told_from_one_that_waits(
    computed: list[float], seconds: float, words: str
) -> None:
    watchdog = Watchdog(300, 100)
    computed[0] = 50.0
    watchdog.beat()
    computed[0] += seconds
    with pytest.raises(Ended, match=words):
        watchdog.pass_by(101)


def test_alone_on_a_cpu_silence_is_told_once_and_ends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog(300, 100)
    watchdog.alone("cpu")
    for _ in range(3):
        watchdog.pass_by(250)
    told = capfd.readouterr().err
    assert told.count("fasttrain: no step was done for 300 s") == told.count("; the run goes on") == 1
    assert "test_alone_on_a_cpu" in told  # where the main thread stood
    steps(watchdog, 0, 101)
    assert "no step was done for 100 s" in capfd.readouterr().err  # a new silence
    steps(watchdog, 150, 900, 9000)
    assert "the run goes on" not in capfd.readouterr().err  # none is far longer than the longest before
    watchdog.pass_by(90_001)
    assert "no step was done for 90000 s" in capfd.readouterr().err


def test_alone_on_a_gpu_a_step_far_longer_than_those_before_ends_the_process(
    capfd: pytest.CaptureFixture[str],
) -> None:
    watchdog = Watchdog(300, 100)
    watchdog.alone("cuda")
    steps(watchdog, 400, *[130] * (KNOWN - 1))  # the first with the start: not counted
    watchdog.pass_by(5000)
    assert capfd.readouterr().err.count("the run goes on") == 3  # the start, a first step, and 5000 s
    watchdog.rest()
    steps(watchdog, 120)
    watchdog.pass_by(PATIENCE * 130)
    with pytest.raises(Ended, match=f"no step was done for {PATIENCE * 130} s") as ended:
        watchdog.pass_by(1)
    assert "Another process" not in str(ended.value)


def test_short_steps_have_the_configured_limit(capfd: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog(300, 100)
    watchdog.alone("cuda")
    steps(watchdog, 1, *[0.5] * KNOWN)
    watchdog.pass_by(100)
    with pytest.raises(Ended, match="for 100 s"):
        watchdog.pass_by(0.5)
    assert "the run goes on" not in capfd.readouterr().err


def test_patience_where_it_is_due() -> None:
    watchdog = Watchdog(300, 100)
    steps(watchdog, 1, 1)
    with watchdog.patient():
        watchdog.pass_by(PATIENCE * 100)
        watchdog.rest()
        watchdog.pass_by(PATIENCE * 100)
    watchdog.pass_by(100)
    with pytest.raises(Ended, match="for 100 s"):
        watchdog.pass_by(1)


def test_the_thread_counts_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[float] = []
    monkeypatch.setattr(Watchdog, "pass_by", lambda self, seconds: passed.append(seconds))
    watchdog = Watchdog(300, 0.01)
    watchdog.start()
    while len(passed) < 2:
        watchdog._thread.join(0.001)
    watchdog.stop()
    assert not watchdog._thread.is_alive()
    assert passed[0] == pytest.approx(0.001)
