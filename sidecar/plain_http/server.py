"""The server: routes, connections, and their end.

Guarantees: what cannot be answered is answered with a problem (RFC 9457): a path or method that does not exist, a body
            that is too large, a handler that fails.
Gives up:   streamed bodies, upgrades, TLS, speed: gateways have a listener of their own.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import unquote_to_bytes

from sidecar.plain_http.connection import Connection
from sidecar.plain_http.messages import Answer, Request, problem

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 65_536
CONNECTIONS_MAX = 1_000  # closed at accept
TICK_S = 1.0


Handler = Callable[[Request], Awaitable[Answer]]


class Server:
    """Serves ``routes``: (method, path) -> handler. A part of a path in braces matches any one: ``/limits/{id}``."""

    def __init__(self, routes: Mapping[tuple[str, str], Handler], *, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        self.body_bytes_max = body_bytes_max
        self.stopping = False
        self.connections: set[Connection] = set()
        self._routes = [(tuple(path.split("/")), method, handler) for (method, path), handler in routes.items()]
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve on a socket that is bound; it is closed with the server."""
        loop = asyncio.get_running_loop()
        create = loop.create_unix_server if listener.family is socket.AF_UNIX else loop.create_server
        self._server = await create(lambda: Connection(self), sock=listener)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Accept nothing more, answer what is being answered within ``grace_s``, close."""
        self.stopping = True
        if self._server is not None:
            self._server.close()
        answering = [task for connection in tuple(self.connections) if (task := connection.finish()) is not None]
        if answering:
            _, late = await asyncio.wait(answering, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for connection in tuple(self.connections):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()

    async def answer(self, method: str, path: str, body: bytes) -> Answer:
        """The answer to a request; ``path`` is still percent-encoded."""
        allowed: list[str] = []
        for wanted, verb, handler in self._routes:
            named = _matched(wanted, path)
            if named is None:
                continue
            if method not in (verb, "HEAD") or (method == "HEAD" and verb != "GET"):
                allowed += [verb, "HEAD"] if verb == "GET" else [verb]
                continue
            try:
                return await handler(Request(method, path, named, body))
            except Exception:
                log.exception("a request failed", extra={"fields": {"method": method, "path": path}})
                return problem(500, f"{method} {path}: the request failed; the log says why")
        if allowed:
            return problem(405, f"{method} {path}: method not allowed", ("allow", ", ".join(allowed)))
        return problem(404, f"{method} {path}: not found")

    # What connections call.

    def admit(self, connection: Connection) -> bool:
        """Take a connection in, unless there are too many."""
        if self.stopping or len(self.connections) >= CONNECTIONS_MAX:
            return False
        self.connections.add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        return True

    def release(self, connection: Connection) -> None:
        self.connections.discard(connection)

    def _tick(self) -> None:
        """Close connections whose time is over; nothing ticks while there are none."""
        now_s = time.monotonic()
        for connection in tuple(self.connections):
            connection.sweep(now_s)
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick) if self.connections else None


def _matched(wanted: tuple[str, ...], path: str) -> dict[str, str] | None:
    """The named parts of a path that a route matches, else None. A part that is no UTF-8 matches nothing."""
    parts = path.split("/")
    if len(parts) != len(wanted):
        return None
    named: dict[str, str] = {}
    for name, part in zip(wanted, parts, strict=True):
        try:
            text = unquote_to_bytes(part).decode()
        except UnicodeDecodeError:
            return None
        if name.startswith("{") and text:
            named[name[1:-1]] = text
        elif name != text:
            return None
    return named
