"""Two machines on this one: network namespaces joined by a link, each with a host name of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ADDRESSES = ("10.213.7.1", "10.213.7.2")
NAMES = ("node-a", "node-b")


def unavailable() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not all(map(shutil.which, ("ip", "unshare", "mount"))):
        return "network namespaces need ip (iproute2), unshare and mount"
    try:
        with machines(Path("/nonexistent"), "probe"):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"


class Machines:
    """Two namespaces; `enter(i)` are the first words of a command that runs in the i-th."""

    def __init__(self, folder: Path, mark: str, hosts: Sequence[str]) -> None:
        """Name them; `hosts` is what /etc/hosts holds in each."""
        self.folder, self.mark, self.hosts = folder, mark, hosts
        self.names = [f"ft-{mark}-{rank}" for rank in range(2)]

    def enter(self, rank: int) -> list[str]:
        """What comes before a command."""
        prepare = f'hostname {NAMES[rank]}; mount --bind {self.folder}/hosts{rank} /etc/hosts; exec "$@"'
        namespace = ["ip", "netns", "exec", self.names[rank], "unshare", "--uts", "--mount"]
        return [*namespace, "sh", "-c", prepare, "sh"]

    def link(self, state: str) -> None:
        """Take the link `down` or `up`."""
        _ip("-n", self.names[1], "link", "set", f"ft{self.mark}1", state)

    def make(self) -> None:
        """Make the namespaces and the link between them."""
        ends = [f"ft{self.mark}{rank}" for rank in range(2)]
        for name in self.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        peer = ("type", "veth", "peer", "name", ends[1], "netns", self.names[1])
        _ip("link", "add", ends[0], "netns", self.names[0], *peer)
        for rank, (name, end) in enumerate(zip(self.names, ends, strict=True)):
            _ip("-n", name, "address", "add", f"{ADDRESSES[rank]}/24", "dev", end)
            _ip("-n", name, "link", "set", end, "up")
        for rank, text in enumerate(self.hosts):
            (self.folder / f"hosts{rank}").write_text(text)

    def remove(self) -> None:
        """Remove them, and the link with them."""
        for name in self.names:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)


@contextmanager
def machines(folder: Path, mark: str, hosts: Sequence[str] = ()) -> Iterator[Machines]:
    """Two machines, removed afterwards.

    Args:
        folder: for their files.
        mark: at most 6 letters or digits that no other test uses.
        hosts: see `known_names`.
    """
    both = Machines(folder, mark, hosts)
    try:
        both.make()
        yield both
    finally:
        both.remove()


def known_names(kind: str) -> list[str]:
    """What each /etc/hosts knows of host names: `none`, its own as `127.0.1.1`, or `right` ones."""
    texts = []
    for rank in range(2):
        lines = ["127.0.0.1 localhost"]
        if kind != "none":
            for other, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True)):
                own = kind == "127.0.1.1" and other == rank
                lines.append(f"{'127.0.1.1' if own else address} {name}")
        texts.append("\n".join(lines) + "\n")
    return texts


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)
