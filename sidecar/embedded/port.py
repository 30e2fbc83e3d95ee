"""A free TCP port of the loopback interface.

Guarantees: nobody listens on the port now, and the kernel gives it to no outgoing connection: a client that keeps
            trying to reach a stopped server on an ephemeral port may connect to itself and keep the port from it.
Gives up:   nothing reserves the port, so another process may take it before its server listens.
"""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

LOWEST = 20_000
EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
EPHEMERAL_LOWEST_DEFAULT = 32_768


def free_port() -> int:
    """A port that can be listened on.

    Drawn from the system's randomness: tests that fix the seed of `random` would all draw the same one.
    """
    span = max(_ephemeral_lowest() - LOWEST, 1_000)
    for _ in range(1_000):
        port = LOWEST + secrets.randbelow(span)
        if is_free(port):
            return port
    raise OSError("no free port on 127.0.0.1")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _ephemeral_lowest() -> int:
    try:
        return int(EPHEMERAL_RANGE.read_text(encoding="ascii").split()[0])
    except OSError:
        return EPHEMERAL_LOWEST_DEFAULT
