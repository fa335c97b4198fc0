"""Free loopback ports for servers that cannot choose one themselves."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack

_FIRST, _COUNT = 10_000, 20_000
"""Below the ports that systems assign to connections and to servers that ask for any port.

So no other program gets such a port between its choice and its use, or while a server restarts.
"""


def free_ports(count: int) -> list[int]:
    """Return different ports of 127.0.0.1 on which nothing listens."""
    chosen: list[int] = []
    with ExitStack() as held:
        while len(chosen) < count:
            port = _FIRST + secrets.randbelow(_COUNT)
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            chosen.append(port)
    return chosen


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens."""
    return free_ports(1)[0]
