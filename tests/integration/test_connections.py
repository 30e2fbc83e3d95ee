"""How many connections of Redis a worker has, and what happens when it wants more."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from sidecar.clock import Clock
from sidecar.embedded import EmbeddedRedis
from sidecar.errors import StoreUnavailable
from sidecar.store.calls import CONNECTIONS_MAX
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.store.pool import UNUSED_S, Pool, connect

MANY = 200


@pytest.fixture
async def client(redis_server: EmbeddedRedis) -> AsyncIterator[Redis]:
    async with connect(redis_server.url, protocol=2, max_connections=CONNECTIONS_MAX, client_name="ours") as made:
        yield made


def pool_of(client: Redis) -> Pool:
    assert isinstance(client.connection_pool, Pool)
    return client.connection_pool


async def open_now(client: Redis) -> int:
    """Connections that the server knows of."""
    return sum(one["name"] == "ours" for one in await client.client_list())


async def test_a_moment_of_many_calls_opens_no_more_connections_than_are_allowed(client: Redis) -> None:
    assert await asyncio.gather(*(client.incr("connections-test") for _ in range(MANY)))
    assert await open_now(client) == CONNECTIONS_MAX
    assert pool_of(client).size == CONNECTIONS_MAX


async def test_connections_that_nobody_needs_are_closed(client: Redis) -> None:
    await asyncio.gather(*(client.ping() for _ in range(MANY)))
    pool = pool_of(client)
    later_s = asyncio.get_running_loop().time() + UNUSED_S
    for left in range(CONNECTIONS_MAX - 1, -1, -1):
        await pool.shrink(later_s)
        assert pool.size == left
    assert await client.ping()
    assert await open_now(client) == 1


async def test_who_gives_up_waiting_takes_no_connection_with_it(client: Redis) -> None:
    async def wait() -> None:
        await client.execute_command("BLPOP", "connections-test-empty", 0)  # type: ignore[no-untyped-call]

    calls = [asyncio.create_task(wait()) for _ in range(MANY)]
    await asyncio.sleep(0)
    while pool_of(client).size < CONNECTIONS_MAX:
        await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert await asyncio.gather(*(client.ping() for _ in range(MANY))) == [True] * MANY
    assert pool_of(client).size <= CONNECTIONS_MAX


async def test_a_server_that_refuses_connections_keeps_no_place_in_the_pool(redis_server: EmbeddedRedis) -> None:
    store = Store("redis://127.0.0.1:1/0", Keyspace("nowhere"), Clock(), identity="test", timeout_ms=1_000)
    for _ in range(CONNECTIONS_MAX + 1):
        with pytest.raises(StoreUnavailable):
            await store.catalogue_revision()
    await store.close()


async def test_a_connection_that_cannot_be_made_keeps_nobody_from_another_try(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise OSError("no certificate yet")

    pool = pool_of(client)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "make_connection", fails)
        for _ in range(CONNECTIONS_MAX):
            with pytest.raises(OSError, match="no certificate yet"):
                await client.ping()
    assert await asyncio.wait_for(client.ping(), 10)


async def test_a_closed_connection_is_opened_again_and_leaves_no_garbage(client: Redis) -> None:
    pool = pool_of(client)
    await asyncio.gather(*(client.ping() for _ in range(MANY)))
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(CONNECTIONS_MAX):
            await pool.shrink(asyncio.get_running_loop().time() + UNUSED_S)
        await asyncio.gather(*(client.ping() for _ in range(MANY)))
        gc.collect()
        found = {type(one).__name__ for one in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert await open_now(client) == CONNECTIONS_MAX
    assert not found & {"_AsyncHiredisParser", "_AsyncRESP2Parser", "Reader", "StreamReader", "TCPTransport"}
