"""What is asked beside the calls leaves nothing open, whoever answers first."""

from __future__ import annotations

import asyncio
from typing import Any

from sidecar import redis_url
from sidecar.store.sentinel import SentinelServers

URL = redis_url.parse("redis+sentinel://10.0.0.1,10.0.0.2,10.0.0.3/main")
MASTER = [b"ip", b"10.0.0.9", b"port", b"6379", b"config-epoch", b"1"]


class Asked:
    """A client of a sentinel that answers at once and is slow to close, as with TLS."""

    def __init__(self, closes: asyncio.Event) -> None:
        self.closed = False
        self._closes = closes

    async def execute_command(self, *_words: str) -> list[bytes]:
        return MASTER

    async def aclose(self) -> None:
        await self._closes.wait()
        self.closed = True


async def test_a_sentinel_whose_answer_came_second_is_closed_to_the_end() -> None:
    """The majority is there while the others are closing: they are cancelled, and must not stay half closed."""
    slow, quick = asyncio.Event(), asyncio.Event()
    quick.set()
    clients: list[Asked] = []

    def connect(url: str, timeout_s: float | None = None) -> Any:
        del url, timeout_s
        clients.append(Asked(slow if len(clients) == 2 else quick))
        return clients[-1]

    servers = SentinelServers(URL, connect)
    learning = asyncio.create_task(servers.owner("key"))
    while len(clients) < 3 or not (clients[0].closed and clients[1].closed):
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)  # the third one is cancelled in the midst of closing
    slow.set()
    await learning
    assert [client.closed for client in clients[:3]] == [True] * 3
