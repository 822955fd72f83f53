"""Shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from typing import NoReturn

import pytest
import torch

from tests.leaks import held, left_since

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is defined: the interpreter runs them on a CPU
for number in (signal.SIGINT, signal.SIGHUP):  # ignored below `nohup` and a script's `&`
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler)


@pytest.fixture(scope="session")
def _own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`tempfile` has a folder of this process alone, also in processes that are started from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest, _own_temporary_folder: None) -> Iterator[None]:
    """A test that leaves something behind fails, and ends the run: later tests would pay for it."""
    before = held()
    yield
    known = [mark.args[0] for mark in request.node.iter_markers("leaves")]
    left = left_since(before, known)
    if not left:
        return
    gc.collect()  # closes a loader that nobody holds any more
    request.session.shouldfail = f"{request.node.nodeid} leaves behind: {left}"
    pytest.fail(request.session.shouldfail, pytrace=False)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _ends_no_process(_nothing_is_left: None) -> Iterator[None]:
    """What would end the test's process at once (a watchdog, a second signal) fails the test instead."""
    own, end, statuses = os.getpid(), os._exit, []

    def told(status: int) -> NoReturn:
        if os.getpid() != own:  # a process that was forked from it
            end(status)
        statuses.append(status)
        raise SystemExit(status)  # of the thread that asked

    with pytest.MonkeyPatch.context() as patch:  # the tests' own patches end before their fixtures
        patch.setattr(os, "_exit", told)
        yield
    assert not statuses, f"the test's process would have ended with {statuses}"


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh memory holds NaN, so that an element which a kernel does not write shows."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
