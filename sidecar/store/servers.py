"""The servers behind a Redis URL: which one a key is asked of, and how that is learned anew.

Guarantees: nothing is tried twice here but what a server refused because another one has the key; who has what is asked
            beside the calls, so that no call takes longer for it than its own timeout.
Gives up:   keys in a slot that is being moved: they are away until the slot has arrived (docs/protocol.md).
"""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection

    from redis.asyncio import Redis

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 1.0
ASK_PAUSE_S = 0.2


class Connect(Protocol):
    """Opens a client of one server; ``timeout_s`` None is that of a store call."""

    def __call__(self, url: str, timeout_s: float | None = None) -> Redis: ...


class Servers(ABC):
    """Where the keys are."""

    spread = False  # over several servers, each with a part of the keys

    @abstractmethod
    def run(self, key: str, words: tuple[Any, ...]) -> Awaitable[Any]:
        """Execute one command whose keys lie where this one lies."""

    @abstractmethod
    async def owner(self, key: str) -> Redis:
        """The server that has a key."""

    @abstractmethod
    async def everyone(self) -> dict[str, Redis]:
        """Every server that has data or may take over, by address."""

    def doubt(self) -> None:  # noqa: B027 - where there is one server nothing can be found out
        """A call failed: find out whether another server has taken over."""

    @abstractmethod
    async def close(self) -> None:
        """Close every connection."""


class OneServer(Servers):
    """The server that the URL names."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def run(self, key: str, words: tuple[Any, ...]) -> Awaitable[Any]:
        del key
        return self._client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def owner(self, key: str) -> Redis:
        del key
        return self._client

    async def everyone(self) -> dict[str, Redis]:
        return {"": self._client}

    async def close(self) -> None:
        await self._client.aclose()


class Following(Servers):
    """Servers whose parts change: a subclass asks who has which, when a call failed and now and then."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._clients: dict[str, Redis] = {}
        self._asking: asyncio.Task[None] | None = None
        self._asked_s = float("-inf")
        self._cause: Exception | None = None

    def doubt(self) -> None:
        if self._asking is None and asyncio.get_running_loop().time() - self._asked_s >= ASK_PAUSE_S:
            self._asking = asyncio.create_task(self._ask_again())

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()

    @abstractmethod
    async def _ask(self) -> Collection[str]:
        """Learn who has what; returns the URLs that still matter. Raises RedisError or OSError when nobody answers."""

    async def _learn(self) -> None:
        """Wait until an answer under way is there, or a first one."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_again())
        await asyncio.shield(self._asking)

    async def _ask_again(self) -> None:
        try:
            matter = await self._ask()
        except (RedisError, OSError, TimeoutError) as error:
            self._cause = error
        else:
            self._cause = None
            for url in self._clients.keys() - set(matter):
                await self._clients.pop(url).aclose()
        finally:
            self._asking = None
            self._asked_s = asyncio.get_running_loop().time()

    def _client(self, url: str) -> Redis:
        client = self._clients.get(url)
        if client is None:
            client = self._clients[url] = self._connect(url)
        return client

    async def _asked(self, url: str, *words: str) -> Any:
        """One question to one server, on a connection of its own."""
        client = self._connect(url, ASK_TIMEOUT_S)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await client.execute_command(*words)  # type: ignore[no-untyped-call]
        finally:
            await _closed(client)

    def _nobody(self, what: str) -> RedisConnectionError:
        cause = f": {type(self._cause).__name__}: {self._cause}" if self._cause is not None else ""
        nobody = RedisConnectionError(f"{what}{cause}")
        nobody.__cause__ = self._cause
        return nobody


async def _closed(client: Redis) -> None:
    """Close a client to the end, also when whoever asked is cancelled meanwhile: half closed, it would stay open."""
    closing = asyncio.ensure_future(client.aclose())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await closing
        raise


def sample(urls: Collection[str], most: int) -> list[str]:
    """Some of them, in any order, so that not everybody asks the same."""
    found = list(urls)
    return random.sample(found, min(most, len(found)))
