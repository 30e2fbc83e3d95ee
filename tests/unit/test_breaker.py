"""The breaker, alone and in front of a Redis that dies and comes back without its scripts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from sidecar.clock import Clock
from sidecar.embedded import EmbeddedRedis
from sidecar.errors import StoreUnavailable
from sidecar.store.breaker import Breaker
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace


def opened() -> Breaker:
    breaker = Breaker(failures_max=3, probe_ms=250)
    for now_ms in (0, 10, 20):
        breaker.failed(now_ms)
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(failures_max=3)
    for _ in range(5):
        breaker.failed(0)
        breaker.failed(0)
        breaker.succeeded()
    assert not breaker.open
    assert breaker.allows(0)
    assert opened().open


def test_an_open_breaker_lets_one_probe_through_at_a_time() -> None:
    breaker = opened()
    assert not breaker.allows(269)
    assert breaker.allows(270)
    assert not breaker.allows(271)
    assert breaker.allows(520)


def test_a_failed_probe_waits_for_the_next_and_a_good_one_closes() -> None:
    breaker = opened()
    assert breaker.allows(270)
    breaker.failed(320)
    assert not breaker.allows(569)
    assert breaker.allows(570)
    breaker.succeeded()
    assert not breaker.open
    assert breaker.allows(571)
    assert breaker.opened == 1


class StandingClock(Clock):
    """A monotonic clock that the test moves."""

    __slots__ = ("ms",)

    def __init__(self) -> None:
        super().__init__()
        self.ms = 1_000_000

    def monotonic_ms(self) -> int:
        return self.ms


async def test_it_closes_when_redis_comes_back_without_its_scripts(
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]], redis_prefix: str
) -> None:
    """A probe that is answered "no such script" has met a living Redis; the EVAL after it must not be refused."""
    server, clock = await fresh_redis(), StandingClock()
    store = Store(server.url, Keyspace(redis_prefix), clock, identity="test", timeout_ms=1000)
    await store.changes(b"", 0)
    await server.stop()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await store.changes(b"", 0)
    assert not store.available
    await server.start()
    with pytest.raises(StoreUnavailable, match="the breaker is open"):
        await store.changes(b"", 0)
    clock.ms += 1000
    await store.changes(b"", 0)
    assert store.available
    await store.close()
