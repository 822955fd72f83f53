"""Addresses of nodes: what a name stands for, in bounded time, and whether it is this machine's."""

from __future__ import annotations

import socket
import threading

RESOLVING = 10.0
"""Seconds after which a name that does not resolve is taken for wrong."""


def resolved(name: str, seconds: float = RESOLVING, family: int = socket.AF_INET) -> str:
    """The first address of a name, or of an address itself; a name server is asked again for a while.

    Raises:
        socket.gaierror: it has none, or nobody says within `seconds`: a resolver may take minutes.
    """
    found: list[str] = []
    reason, over = ["the name servers do not answer"], threading.Event()

    def ask() -> None:
        while not (found or over.is_set()):
            try:
                found.append(str(socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)[0][4][0]))
            except (OSError, UnicodeError) as error:  # UnicodeError: it cannot be a name, as `a..b`
                reason[0] = getattr(error, "strerror", None) or str(error)
                over.wait(0.5)

    asking = threading.Thread(target=ask, name="resolver", daemon=True)
    asking.start()
    asking.join(min(seconds, RESOLVING))
    over.set()
    asking.join(0.1)  # it ends now, unless it hangs
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, f"{name} does not resolve here: {reason[0]}")
    return found[0]


def is_here(address: str) -> bool:
    """Whether an IPv4 address is one of this machine's."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
