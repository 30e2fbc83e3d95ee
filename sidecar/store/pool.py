"""Connections to one Redis server: a few, waited for in turn, and closed when nobody needs them any more.

Redis takes 10,000 clients by default. A thousand workers may be that many as soon as each has ten connections, which a
moment in which many tenants are met for the first time would open.

Guarantees: never more than ``max_connections``; who finds none free waits in turn, within the time of the call.
Gives up:   calls beyond that many at the same moment, which Redis would work off one after the other anyway.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.asyncio import ConnectionPool, Redis

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

UNUSED_S = 30.0


class Pool(ConnectionPool):
    """A bounded pool. With every connection that is released, one that was unused for UNUSED_S is closed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._free = asyncio.Semaphore(self.max_connections)
        self._released_s: dict[AbstractConnection, float] = {}
        self._closed: list[AbstractConnection] = []

    @property
    def size(self) -> int:
        """Connections in use or kept for later."""
        return len(self._in_use_connections) + len(self._available_connections)

    def make_connection(self) -> AbstractConnection:
        """One that was closed, if there is any: its parser refers to itself, and would be garbage with its buffers."""
        return self._closed.pop() if self._closed else super().make_connection()  # type: ignore[no-untyped-call]

    async def get_connection(self, *_command: Any, **_options: Any) -> AbstractConnection:
        await self._free.acquire()
        try:
            connection: AbstractConnection = self.get_available_connection()  # type: ignore[no-untyped-call]
        except BaseException:
            self._free.release()
            raise
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        try:
            await super().release(connection)
            now_s = asyncio.get_running_loop().time()
            self._released_s[connection] = now_s
            await self.shrink(now_s)
        finally:
            self._free.release()

    async def shrink(self, now_s: float) -> None:
        """Close the one that was unused for longest; they are taken from the other end."""
        oldest = self._available_connections[:1]
        if oldest and now_s - self._released_s.get(oldest[0], now_s) >= UNUSED_S:
            del self._available_connections[0], self._released_s[oldest[0]]
            try:
                await oldest[0].disconnect()
            finally:
                self._closed.append(oldest[0])


def connect(url: str, **options: Any) -> Redis:
    """A client of one server with a pool of its own; ``options`` are those of the driver."""
    return Redis.from_pool(Pool.from_url(url, **options))
