"""Names that nobody knows cost others nothing: not their place in memory, not their connections to Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.embedded import EmbeddedRedis
from sidecar.enforcement import turns
from sidecar.enforcement.core import Core
from sidecar.enforcement.decision import Identity
from sidecar.errors import StoreUnavailable
from tests.servers.installation import Installation, installation

MOST = 100  # the least that the settings take
SHA = "ab" * 32


@pytest.fixture
async def inside(
    redis_server: EmbeddedRedis, redis_prefix: str, database: str, tmp_path: Path
) -> AsyncIterator[Installation]:
    async with installation(redis_server.url, redis_prefix, database, tmp_path) as opened:
        await opened.catalogue()
        await opened.flusher().flush()
        yield opened


async def small(inside: Installation) -> Core:
    """A worker that keeps as little as it may."""
    core = await inside.core(changes_interval_ms=5_000, tenants_cached_max=MOST, keys_cached_max=MOST)
    await core.changes.catch_up()
    return core


async def test_no_number_of_unknown_keys_drives_out_a_known_one(inside: Installation) -> None:
    core = await small(inside)
    await inside.store.put_key(SHA, "acme")
    assert await core.directory.keys.load(SHA) == "acme"
    for number in range(3 * MOST):
        assert await core.directory.keys.load(f"{number:064}") is None
    assert core.directory.keys.tenant_of(SHA) == (True, "acme")
    assert core.directory.keys.tenant_of(f"{3 * MOST - 1:064}") == (True, None)
    assert core.directory.keys.tenant_of(f"{0:064}") == (False, None)
    assert len(core.directory.keys) == MOST + 1


async def test_a_key_that_was_unknown_is_known_as_soon_as_it_is_announced(inside: Installation) -> None:
    directory = (await small(inside)).directory
    assert await directory.keys.load(SHA) is None
    assert directory.keys.tenant_of(SHA) == (True, None)
    await inside.store.put_key(SHA, "acme")
    directory.changed("key", SHA)
    assert directory.keys.tenant_of(SHA) == (False, None)
    assert await directory.keys.load(SHA) == "acme"
    assert directory.keys.tenant_of(SHA) == (True, "acme")


async def test_tenants_that_nobody_knows_are_refused_when_there_is_no_room_and_known_ones_are_not(
    inside: Installation,
) -> None:
    await inside.tenant("acme", "plus")
    await inside.flusher().flush()
    core = await small(inside)
    enforcer, route = core.enforcer, core.enforcer.policy.routes.default

    async def allowed(tenant: str) -> None:
        """On a busy machine the wait for a first lease may be over before it is there."""
        async with asyncio.timeout(20):
            while not (await enforcer.decide_waiting(Identity(tenant), route, "")).allow:
                await asyncio.sleep(0.01)

    for number in range(MOST):
        await allowed(f"made-up-{number}")
    # All of them have something to report until the ledger has it and the hour is over.
    for number in range(MOST, 2 * MOST):
        decision = await enforcer.decide_waiting(Identity(f"made-up-{number}"), route, "")
        assert (decision.status, decision.reason) == (503, "store_unavailable")
        assert (await inside.store.lookup(f"made-up-{number}")).revision < 0, "introduced to Redis all the same"
    assert len(core.directory.accounts) == MOST
    assert core.directory.strangers_refused >= MOST
    await allowed("made-up-0")
    await allowed("acme")


async def test_lookups_take_turns_and_leave_connections_for_everybody_else(
    inside: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = await small(inside)
    lookup, under_way, most = inside.store.tenant_of_key, 0, 0
    released = asyncio.Event()

    async def slow(sha256: str) -> str | None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await released.wait()
        under_way -= 1
        return await lookup(sha256)

    monkeypatch.setattr(core.directory._store, "tenant_of_key", slow)
    asked = [asyncio.create_task(core.directory.keys.load(f"{number:064}")) for number in range(500)]
    waiting = set(asked)
    async with asyncio.timeout(30):  # a busy machine may let all of them wait first
        while len(waiting) > turns.AT_ONCE:
            _, waiting = await asyncio.wait(waiting, timeout=turns.WAIT_MS / 1_000)
    done = set(asked) - waiting
    assert len(waiting) == most == turns.AT_ONCE
    assert all(isinstance(one.exception(), StoreUnavailable) for one in done)
    assert core.directory.strangers_refused == len(done)
    assert inside.store.available, "nobody said anything against Redis"
    released.set()
    assert set(await asyncio.gather(*waiting)) == {None}
    assert await core.directory.keys.load(SHA) is None  # and there are turns again
