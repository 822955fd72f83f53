"""Names and addresses of nodes; a resolver that does not answer holds nobody up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from fasttrain import distributed
from fasttrain.config import Run
from fasttrain.errors import DistributedError
from fasttrain.launch import address, rally
from fasttrain.launch.address import is_here, resolved


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Name servers that do not answer before the test is over."""
    answer = threading.Event()

    def getaddrinfo(*question: object) -> list[object]:
        answer.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "too late")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(address, "RESOLVING", 0.05)
    yield answer
    answer.set()
    for thread in threading.enumerate():
        if thread.name == "resolver":
            thread.join()


def test_addresses_stand_for_themselves() -> None:
    assert resolved("127.0.0.1") == "127.0.0.1"
    assert resolved("::1", family=socket.AF_UNSPEC) == "::1"
    assert is_here("127.0.0.1")
    assert not is_here("203.0.113.9")


@pytest.mark.parametrize("name", ["a..b", "::1", "x" * 300])
def test_what_has_no_ipv4_address_is_told(name: str) -> None:
    with pytest.raises(socket.gaierror, match="does not resolve here: "):
        resolved(name, 0.1)


def test_a_name_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([socket.gaierror(socket.EAI_AGAIN, "busy"), None])
    right = socket.getaddrinfo

    def getaddrinfo(*question: object) -> object:
        failure = next(answers)
        if failure:
            raise failure
        return right("127.0.0.7", None)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert resolved("soon.example") == "127.0.0.7"


def test_name_servers_that_hang(hung: threading.Event) -> None:
    with pytest.raises(socket.gaierror, match="node-a does not resolve here: the name servers do not answer"):
        resolved("node-a")
    with pytest.raises(
        DistributedError, match=r"no answer from node 0 at node-a:1 .*node-a does not resolve"
    ):
        rally.visit(rally.Node(1, 2, "a", 0, True), "node-a", 1, 300)


def test_a_process_is_told_too(hung: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own start would try for `run.start_timeout`."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "node-a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DistributedError, match=r"node-a does not resolve here.*allowed: MASTER_ADDR"):
        distributed.start(Run(device="cpu"))


@pytest.mark.parametrize(
    ("master", "told"),
    [
        ("127.0.0.1", ""),
        ("203.0.113.9", "MASTER_ADDR is 203.0.113.9, which is no address of this node, node 0; the others"),
        ("a..b", "MASTER_ADDR is a..b, which does not resolve on this node, node 0; the others look"),
    ],
)
def test_node_0_looks_whether_the_address_is_its_own(
    master: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on: behind an address translation others may find it there."""
    monkeypatch.setattr(rally, "PATIENCE", 0.2)
    rally._look(master)
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == bool(told)
