"""Nodes that meet before each start: what they decide, and who is sent away."""

from __future__ import annotations

import errno
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fasttrain.errors import ConfigError, DistributedError
from fasttrain.launch import rally
from fasttrain.launch.rally import LONGEST, Node, decide, host, interface_of, visit
from tests.faults.harness import free_port

OWN = Node(node=0, nodes=2, command="a", status=0, again=True)
OTHER = replace(OWN, node=1)


def test_all_start_under_a_new_name() -> None:
    first, second = (decide([OWN, OTHER], "10.0.0.1", 5) for _ in range(2))
    assert (first.master, first.port) == ("10.0.0.1", 5)
    assert first.start
    assert first.start != second.start


@pytest.mark.parametrize(
    ("own", "other", "status", "cause"),
    [
        ((7, False), (5, False), 5, 1),
        ((7, True), (1, False), 1, 1),
        ((1, False), (7, True), 1, 0),
        ((75, False), (130, False), 130, 1),
        ((75, False), (7, True), 75, 0),
        ((6, False), (75, False), 6, 0),
        ((0, False), (1, True), 0, 0),  # the run is done, and a process failed on its way out
        ((7, True), (0, False), 7, 0),
    ],
)
def test_the_cause_is_the_status_of_all(
    own: tuple[int, bool], other: tuple[int, bool], status: int, cause: int
) -> None:
    nodes = [
        replace(OWN, status=own[0], again=own[1]),
        replace(OTHER, status=other[0], again=other[1]),
    ]
    decision = decide(nodes, "", 0)
    assert (decision.status, decision.cause, decision.start) == (status, cause, "")


def test_nodes_of_different_runs_do_not_start() -> None:
    for other in (replace(OTHER, command="b"), replace(OTHER, nodes=3)):
        assert decide([OWN, other], "", 0).status == 2


NONSENSE = (
    *(b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 3 * LONGEST, b"[1]\n", b"\xff\n", b'{"node": 1}\n'),
    b'{"node": 0, "nodes": 3, "command": "a", "status": 0, "again": true}\n',
    b'{"node": 1, "nodes": 3, "command": "a", "status": "rm", "again": true}\n',
    b'{"node": 1.0, "nodes": 3, "command": "a", "status": false, "again": 1}\n',
    b'{"node": 1, "nodes": 3, "command": "a", "status": 0, "again": true, "leaving": "now"}\n',
    b"[" * (LONGEST - 1) + b"\n",
)


def test_strangers_are_sent_away() -> None:
    """What is no message of a launcher, and a node that has gone again, hold nobody up."""
    port = free_port()
    nodes = [replace(OWN, node=rank, nodes=3) for rank in range(3)]
    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(host, nodes[0], port, 120)]
        for words in NONSENSE:
            with connected(port) as connection:
                connection.sendall(words)
                connection.shutdown(socket.SHUT_WR)
                assert not _read(connection)  # sent away
        with connected(port) as connection:
            connection.sendall(b'{"node": 1, "nodes": 3, "command": "x", "status": 0, "again": true}\n')
        visits = [pool.submit(visit, node, "127.0.0.1", port, 120) for node in nodes[1:]]
        decision = work[0].result()
        assert [each.result() for each in visits] == 2 * [(decision, "127.0.0.1")]
    assert decision.start
    assert decision.master == "127.0.0.1"


def connected(port: int) -> socket.socket:
    """A connection to node 0, once it listens."""
    for _ in range(1000):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=60)
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise AssertionError(f"nobody listens at {port}")


def _read(connection: socket.socket) -> bytes:
    """What comes until the other side closes; that it has not read all is no matter."""
    try:
        return connection.recv(LONGEST)
    except ConnectionResetError:
        return b""


def test_a_stranger_that_speaks_slowly_has_its_time_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then must not keep the nodes waiting."""
    now = iter(range(100))
    monkeypatch.setattr(rally.time, "monotonic", lambda: float(next(now)))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"x")
        with pytest.raises(TimeoutError):
            rally._receive(ours, 3)


def test_a_leaving_node_says_how_long_all_wait() -> None:
    """Before the nodes have met nobody has a run to save."""
    waiting = rally._Waiting(300, "")
    waiting.shorten_for(OWN)
    assert waiting.left > 200
    waiting.shorten_for(replace(OTHER, again=False, leaving=60))
    assert 10 < waiting.left <= 60
    waiting.shorten_for(replace(OTHER, again=False, leaving=10))
    end = waiting.end
    waiting.shorten_for(replace(OTHER, again=False, leaving=10))  # later: the first time counts
    assert waiting.end == end


def test_a_port_that_this_user_may_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ConfigError, match=r"MASTER_PORT is 80; allowed: one that this user may open \(Perm"):
        host(OWN, 80, 1)


def test_nobody_comes() -> None:
    port = free_port()
    decision = host(replace(OWN, nodes=3), port, 0.3)
    assert decision.status == 7
    assert decision.why == f"node 1, 2 of 3 did not come to port {port} within 0.3 s"
    with pytest.raises(DistributedError, match=r"no answer from node 0 at 127\.0\.0\.1"):
        visit(OTHER, "127.0.0.1", free_port(), 0.3)


def test_a_run_that_ends_does_not_wait_for_ever_to_say_so() -> None:
    ended = replace(OTHER, status=5, again=False)
    assert visit(ended, "127.0.0.1", free_port(), 0.3)[0].status == 5
    assert host(replace(OWN, status=4, again=False), free_port(), 0.3).status == 4


def test_a_port_that_is_taken() -> None:
    with (
        socket.create_server(("", 0)) as taken,
        pytest.raises(ConfigError, match="allowed: a port that is free"),
    ):
        host(OWN, taken.getsockname()[1], 1)


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    with pytest.raises(DistributedError, match="no network interface of this node has"):
        interface_of("203.0.113.9")
