"""Where the launchers of several nodes meet before each start: `python -m fasttrain.launch.rally`.

Node 0 listens at MASTER_PORT and the others connect, each with its rank, its command line and how its last
start ended. When all are there, node 0 decides for all: a new start, with a new rendezvous id and the address
under which the others see node 0, or the end with the cause's exit status. So all nodes restart together,
leave with one status, and a node that is late, missing or started otherwise is told in one line. It needs no
host names beyond the master's. Nothing is authenticated, as in torch's own store.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import secrets
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from .. import __version__
from ..errors import ConfigError, DistributedError, RunError
from ..streams import open_streams
from .address import is_here, resolved

LONGEST = 4096
"""Bytes of a message at most."""
PATIENCE = 10.0
"""Seconds of waiting before the user is told."""
LEAVING = 60
"""Seconds at most that a run that ends waits for what the other nodes have to say."""
CAUSES = (2, 3, 4, 5, 6, 130, 75, 1, 7, 0)
"""Exit statuses, causes before what follows from them: a crash (1) on one node is a lost connection (7) on
the others."""


@dataclass(frozen=True)
class Node:
    """What a node brings to the meeting.

    Attributes:
        node: its rank among the nodes.
        nodes: how many there are.
        command: SHA-256 of the version and the trainer's arguments.
        status: exit status of its last start.
        again: whether it would start (again).
        leaving: seconds at most that it wants to wait for the others if it would not.
    """

    node: int
    nodes: int
    command: str
    status: int
    again: bool
    leaving: int = LEAVING


@dataclass(frozen=True)
class Decision:
    """What all nodes do next.

    Attributes:
        status: the exit status of the run, if it ends.
        start: rendezvous id of the next start; empty: the run ends.
        master: node 0's address, as the others see it.
        port: free at node 0, for torch's store.
        cause: the node whose status that is.
        why: a line for the user, if there is something to say.
    """

    status: int
    cause: int = 0
    start: str = ""
    master: str = ""
    port: int = 0
    why: str = ""


def decide(nodes: Sequence[Node], master: str, port: int) -> Decision:
    """Node 0's decision, for nodes that are all there."""
    own = nodes[0]
    for other in nodes[1:]:
        if (other.nodes, other.command) != (own.nodes, own.command):
            why = f"node {other.node} was started with other arguments, another NNODES or version than node 0"
            return Decision(2, other.node, why=why)
    if all(node.again for node in nodes):
        return Decision(0, start=secrets.token_hex(8), master=master, port=port)
    if own.status == 0 and not own.again:  # rank 0 is there: the run is done, whatever came after
        return Decision(0)
    cause = min(nodes, key=lambda node: CAUSES.index(node.status))
    why = f"node {cause.node} ended with exit status {cause.status}" if cause.status else ""
    return Decision(cause.status, cause.node, why=why)


def host(own: Node, port: int, timeout: float) -> Decision:
    """Node 0: wait for the others, decide, tell them.

    Raises:
        ConfigError: the port is taken.
    """
    with ExitStack() as opened:
        listener = opened.enter_context(_listen(port))
        present: dict[int, tuple[socket.socket, Node]] = {}
        waiting = _Waiting(timeout, f"node 0 waits at port {port} for the other nodes of {own.nodes}")
        while len(present) < own.nodes - 1 and waiting:
            sockets = [listener, *(connection for connection, _ in present.values())]
            for ready in select.select(sockets, [], [], 0.2)[0]:
                if ready is listener:
                    _welcome(opened.enter_context(listener.accept()[0]), present)
                else:  # it does not speak again: it has gone
                    present = {rank: each for rank, each in present.items() if each[0] is not ready}
            for node in (own, *(node for _, node in present.values())):
                waiting.shorten_for(node)
        missing = [str(rank) for rank in range(1, own.nodes) if rank not in present]
        nodes = [own, *(node for _, node in present.values())]
        if missing and all(node.again for node in nodes):
            why = f"node {', '.join(missing)} of {own.nodes} did not come to port {port} within {timeout:g} s"
            decision = Decision(DistributedError.exit_status, why=why)
        else:
            master = next(iter(present.values()))[0].getsockname()[0] if present else ""
            decision = decide(nodes, master, _free_port())
        for connection, _ in present.values():
            with suppress(OSError):  # it has gone this moment: the start will fail, and they meet again
                connection.sendall(_message(asdict(decision)))
        return decision


def _welcome(connection: socket.socket, present: dict[int, tuple[socket.socket, Node]]) -> None:
    """Take in one node; strangers are sent away."""
    try:
        node = Node(**_receive(connection, PATIENCE / 2))
        types = {field.name: type(getattr(node, field.name)).__name__ for field in fields(Node)}
        if types != Node.__annotations__ or node.node not in range(1, 65536) or node.status not in CAUSES:
            raise ValueError(node)
        present[node.node] = connection, node
    except (OSError, TypeError, ValueError):
        connection.close()


def visit(own: Node, master: str, port: int, timeout: float) -> tuple[Decision, str]:
    """Another node: the decision as node 0 tells it, and this node's address on the way there.

    Raises:
        DistributedError: node 0 does not answer.
    """
    waiting = _Waiting(timeout, f"node {own.node} waits for node 0 at {master}:{port}")
    waiting.shorten_for(own)
    address = reason = ""
    try:
        address = resolved(master, waiting.left)
    except socket.gaierror as error:
        reason = str(error.strerror)
    while address and waiting:
        try:
            with socket.create_connection((address, port), timeout=min(5.0, timeout)) as connection:
                connection.sendall(_message(asdict(own)))
                answer = _receive(connection, waiting.left + PATIENCE)  # node 0 decides when its time is over
                return Decision(**answer), connection.getsockname()[0]
        except (OSError, TypeError, ValueError) as error:  # not there yet, or the last start's store
            reason = str(error)
            time.sleep(min(0.5, waiting.left))
    if not own.again:
        return Decision(own.status, own.node), ""
    raise DistributedError(
        f"node {own.node}: no answer from node 0 at {master}:{port} within {waiting.passed:.0f} s "
        f"({reason}); allowed: MASTER_ADDR and MASTER_PORT of node 0, reachable from here"
    )


class _Waiting:
    """True until the time is over; tells after a while what is waited for."""

    def __init__(self, timeout: float, words: str) -> None:
        self.words, self.begin = words, time.monotonic()
        self.end = self.begin + timeout

    def __bool__(self) -> bool:
        now = time.monotonic()
        if self.words and now > self.begin + PATIENCE:
            print(f"launch.sh: {self.words}", file=sys.stderr, flush=True)
            self.words = ""
        return now < self.end

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.01, self.end - time.monotonic())

    @property
    def passed(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.begin

    def shorten(self, seconds: float) -> None:
        """End at the latest `seconds` after the first call."""
        self.end = min(self.end, time.monotonic() + seconds)

    def shorten_for(self, node: Node) -> None:
        """A node that leaves is not kept."""
        if not node.again:
            self.shorten(node.leaving)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("", port))
    except OSError as error:
        allowed = (
            "one that this user may open" if isinstance(error, PermissionError) else "a port that is free"
        )
        raise ConfigError(f"MASTER_PORT is {port}; allowed: {allowed} ({error.strerror})") from None


def _free_port() -> int:
    with socket.create_server(("", 0)) as probe:
        return int(probe.getsockname()[1])


def _message(values: dict[str, object]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _receive(connection: socket.socket, timeout: float) -> dict[str, Any]:
    """One message, a line of JSON."""
    end = time.monotonic() + timeout
    data = b""
    while not data.endswith(b"\n"):
        connection.settimeout(max(0.01, end - time.monotonic()))
        part = connection.recv(LONGEST)
        if not part or len(data) > LONGEST:
            raise ValueError("it is not a launcher that answers")
        data += part
    try:
        values = json.loads(data)
    except RecursionError:
        values = None
    if not isinstance(values, dict):
        raise ValueError("it is not a launcher that answers")
    return values


def interface_of(address: str) -> str:
    """Name of the network interface with an IPv4 address, as gloo and NCCL want it.

    Raises:
        DistributedError: there is none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    raise DistributedError(f"no network interface of this node has the address {address}")


def _look(master: str) -> None:
    """Tell if MASTER_ADDR is not node 0, which runs here; behind an address translation it may be right."""
    try:
        if is_here(resolved(master, PATIENCE / 2)):
            return
        what = "is no address of this node, node 0"
    except socket.gaierror:
        what = "does not resolve on this node, node 0"
    print(f"launch.sh: MASTER_ADDR is {master}, which {what}; the others look for it there", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Meet; prints `start RENDEZVOUS ADDRESS PORT INTERFACE` or `end STATUS CAUSE`."""
    parser = argparse.ArgumentParser(prog="python -m fasttrain.launch.rally")
    for name in ("nodes", "node", "port", "status"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--master", required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--leaving", type=int, default=LEAVING)
    parser.add_argument("command", nargs="*", help="after --: the trainer's arguments")
    options = parser.parse_args(arguments)
    words = json.dumps([__version__, *options.command])
    digest = hashlib.sha256(words.encode()).hexdigest()
    status = options.status if options.status in CAUSES else 1
    own = Node(options.node, options.nodes, digest, status, options.again, options.leaving)
    try:
        if own.node == 0:
            if own.again:
                _look(options.master)
            decision = host(own, options.port, options.timeout)
            address = decision.master
        else:
            decision, address = visit(own, options.master, options.port, options.timeout)
        if decision.why and own.status != decision.status:
            print(f"launch.sh: {decision.why}", file=sys.stderr)
        if decision.start:
            print("start", decision.start, decision.master, decision.port, interface_of(address))
        else:
            print("end", decision.status, decision.cause)
    except RunError as error:
        print(f"launch.sh: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback
    open_streams()
    main()
