"""A port where nothing is refused and nothing accepted: its queue is full, so the kernel drops every further SYN.

To who connects it is a host that is away, behind a firewall that drops packets, or gone from the network.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from types import TracebackType
from typing import Self

# What the kernel would have let in it lets in at once on loopback.
PROBE_MS = 100
FILLED_BY_MOST = 16


class FullBacklog:
    """Entering opens it on a free port and fills its queue."""

    def __init__(self) -> None:
        self._sockets = contextlib.ExitStack()
        self._listener = self._sockets.enter_context(socket.socket())

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def connects(self) -> bool:
        """Whether one more connection is made; it stays, and its SYN is sent again by the kernel after a second."""
        client = self._sockets.enter_context(socket.socket())
        client.setblocking(False)
        if client.connect_ex(("127.0.0.1", self.port)) != errno.EINPROGRESS:
            return True
        poll = select.poll()
        poll.register(client, select.POLLOUT)
        return bool(poll.poll(PROBE_MS))

    def __enter__(self) -> Self:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        assert any(not self.connects() for _ in range(FILLED_BY_MOST)), "its queue does not fill up"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sockets.close()
