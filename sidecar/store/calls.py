"""Calls to Redis: within a timeout, past a breaker, on whichever server has the key.

Guarantees: a call takes no longer than its timeout, topology and an unknown script included; it is sent once, and once
            more only when a server refused it unread; a connection whose answer was not read is closed, not used again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from sidecar import redis_url
from sidecar.errors import StoreRefused, StoreUnavailable
from sidecar.store.breaker import Breaker
from sidecar.store.cluster import ClusterServers
from sidecar.store.patience import Patience
from sidecar.store.sentinel import SentinelServers
from sidecar.store.servers import OneServer, Servers

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from sidecar.clock import Clock

# A thousand workers fit into the 10,000 clients that Redis takes by default.
CONNECTIONS_MAX = 8
# Answers of a server that is not ready or has just lost its part: trying again may help. Whatever else Redis refuses is
# a matter of its configuration. A script's error has the word somewhere in its text.
PASSING = (AskError, ClusterDownError, ReadOnlyError, TryAgainError)
PASSING_WORDS = ("READONLY", "CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS", "LOADING", "BUSY ")


class Calls:
    """The way to the servers of one URL; ``connect`` opens a client of one of them."""

    def __init__(
        self, url: str, connect: Callable[..., Redis], clock: Clock, *, timeout_ms: int, files: dict[str, str]
    ) -> None:
        self.made: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self._clock = clock
        self._open = connect
        self._files = files
        self._timeout_s = timeout_ms / 1000
        self.servers = self._opened(url)
        self._breakers = {"": Breaker()}

    @property
    def available(self) -> bool:
        """Whether no breaker is open."""
        return not any(breaker.open for breaker in self._breakers.values())

    @property
    def breaker_opened(self) -> int:
        """How often a breaker opened."""
        return sum(breaker.opened for breaker in self._breakers.values())

    def breaker(self, key: str) -> Breaker:
        """One for all of Redis; in a cluster one for each hash tag, since a node may be away alone."""
        if not self.servers.spread:
            return self._breakers[""]
        place = key.partition("{")[2].partition("}")[0]
        breaker = self._breakers.get(place)
        if breaker is None:
            breaker = self._breakers[place] = Breaker()
        return breaker

    async def run(self, verb: str, key: str, words: tuple[Any, ...], unknown: tuple[Any, ...] = ()) -> Any:
        """One command on a key's server; ``unknown`` follows at once when Redis does not know the script."""
        breaker = self.breaker(key)
        if not breaker.allows(self._clock.monotonic_ms()):
            raise StoreUnavailable("Redis is away; the breaker is open")
        self.made[verb] = self.made.get(verb, 0) + 1
        try:
            with Patience(self._timeout_s):
                try:
                    answer = await self.servers.run(key, words)
                except NoScriptError:
                    answer = await self.servers.run(key, unknown)
        except (RedisError, OSError, TimeoutError) as error:
            self.errors[verb] = self.errors.get(verb, 0) + 1
            breaker.failed(self._clock.monotonic_ms())
            if isinstance(error, ResponseError) and not _passes(error):
                raise StoreRefused(f"Redis refused {verb}: {error}") from error
            self.servers.doubt()
            raise StoreUnavailable(f"{type(error).__name__} during {verb}: {error}") from error
        breaker.succeeded()
        return answer

    async def everyone(self, verb: str) -> dict[str, Redis]:
        """Every server by address, to be asked one by one."""
        self.made[verb] = self.made.get(verb, 0) + 1
        try:
            return await self.servers.everyone()
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"{type(error).__name__} during {verb}: {error}") from error

    def _opened(self, url: str) -> Servers:
        if "+" not in url.partition("://")[0]:
            return OneServer(self._connect(url))
        where = redis_url.parse(url)
        return (SentinelServers if where.kind == "sentinel" else ClusterServers)(where, self._connect)

    def _connect(self, url: str, timeout_s: float | None = None) -> Redis:
        """A client that never tries again by itself."""
        # A call has a limit of its own; the driver's only ends what is left behind by it.
        timeout_s = timeout_s or 2 * self._timeout_s
        files: dict[str, Any] = self._files if url.startswith("rediss:") else {}
        return self._open(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=CONNECTIONS_MAX,
            driver_info=None,  # it would cost every connection one more turn, and the user one more permission
            **files,
        )


def _passes(error: ResponseError) -> bool:
    return isinstance(error, PASSING) or any(word in str(error) for word in PASSING_WORDS)
