"""Lost state: Redis wiped, wound back or restarted; what was counted and what caps allow survive it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis.asyncio

from sidecar.catalogue.period import bounds
from sidecar.embedded import EmbeddedRedis
from sidecar.enforcement.core import Core
from sidecar.ledger.flusher import Flusher
from tests.servers.installation import Installation, installation

DEADLINE_S = 15


@pytest.fixture
async def wipeable(
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]], redis_prefix: str, database: str, tmp_path: Path
) -> AsyncIterator[tuple[Installation, redis.asyncio.Redis]]:
    server = await fresh_redis()
    async with (
        installation(server.url, redis_prefix, database, tmp_path) as place,
        redis.asyncio.Redis.from_url(server.url) as direct,
    ):
        await place.catalogue()
        yield place, direct


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.02)


async def settled(place: Installation, core: Core, flusher: Flusher, tenant: str, amount: int) -> None:
    """Wait until the ledger has counted ``amount``."""

    async def there() -> bool:
        await core.flush()
        await flusher.flush()
        return await place.counted(tenant) == amount

    await until(there)


async def allowed_in_all(place: Installation, core: Core, flusher: Flusher, tenant: str) -> int:
    """Ask until the answer says that the period's units are spent; returns how often it was allowed."""
    allowed = 0
    async with asyncio.timeout(DEADLINE_S):
        while True:
            decision = await place.ask(core, tenant)
            if decision.allow:
                allowed += 1
            elif decision.reason == "limit_reached":
                return allowed
            else:
                await flusher.flush()
                await asyncio.sleep(0.02)


async def test_a_cap_is_exact_across_a_wipe_in_the_middle(
    wipeable: tuple[Installation, redis.asyncio.Redis],
) -> None:
    place, direct = wipeable
    flusher = place.flusher(reclaim_after_ms=1_000)
    await flusher.flush()
    core = await place.core(reclaim_after_ms=1_000, lease_ttl_ms=500)
    first = sum([(await place.ask(core, "t")).allow for _ in range(40)])
    await settled(place, core, flusher, "t", first)
    await direct.flushall()
    second = await allowed_in_all(place, core, flusher, "t")
    assert first + second == 100
    await settled(place, core, flusher, "t", 100)
    month = bounds("month", place.clock.wall_s())[0]
    await core.abandon()
    assert int((await place.store.limit("t", "api_calls", month))["spent"]) == 100


async def test_a_loss_is_told_in_one_line_for_all_shards(
    wipeable: tuple[Installation, redis.asyncio.Redis], caplog: pytest.LogCaptureFixture
) -> None:
    place, direct = wipeable
    flusher = place.flusher(reclaim_after_ms=1_000)
    await flusher.flush()
    await direct.flushall()
    await flusher.flush()
    await flusher.flush()
    assert [record.getMessage() for record in caplog.records if "restored" in record.getMessage()] == [
        "shards restored after lost state"
    ]


async def test_what_the_ledger_never_saw_comes_back_from_the_journal(
    wipeable: tuple[Installation, redis.asyncio.Redis],
) -> None:
    place, direct = wipeable
    flusher = place.flusher(reclaim_after_ms=1_000)
    await flusher.flush()
    core = await place.core(reclaim_after_ms=1_000, lease_ttl_ms=500)
    allowed = sum([(await place.ask(core, "t")).allow for _ in range(30)])
    await core.flush()
    await direct.flushall()  # Redis had it, the ledger did not
    await settled(place, core, flusher, "t", allowed)
    await core.stop(5)
    assert not list((place.directory / "one" / "journals").iterdir())


async def test_nothing_is_granted_until_writers_that_may_still_spend_have_run_out(
    wipeable: tuple[Installation, redis.asyncio.Redis],
) -> None:
    place, direct = wipeable
    flusher = place.flusher(hold="full", reclaim_after_ms=2_000)
    await flusher.flush()
    core = await place.core(reclaim_after_ms=2_000, lease_ttl_ms=500)
    assert (await place.ask(core, "t")).allow
    await settled(place, core, flusher, "t", 1)
    await direct.flushall()
    await flusher.flush()
    other = await place.core("two", reclaim_after_ms=2_000, lease_ttl_ms=500)
    refused = await place.ask(other, "t")
    assert (refused.allow, refused.reason, refused.status) == (False, "store_unavailable", 503)

    async def granted_again() -> bool:
        await flusher.flush()
        return (await place.ask(other, "t")).allow

    await until(granted_again)
    await core.abandon()
    await other.abandon()


async def test_keys_tenants_and_the_catalogue_come_back_after_a_wipe(
    wipeable: tuple[Installation, redis.asyncio.Redis],
) -> None:
    from sidecar.ledger import keys  # noqa: PLC0415 - only here

    place, direct = wipeable
    flusher = place.flusher()
    await place.tenant("t", "plus")
    async with place.ledger.transaction() as tx:
        created = await keys.create(tx, "t", actor="test")
    await flusher.flush()
    await direct.flushall()
    await flusher.project()
    await flusher.flush()
    assert await place.store.tenant_of_key(created.row.sha256) == "t"
    assert (await place.store.lookup("t")).revision > 0
    found = await place.store.catalogue()
    assert found is not None
    assert found.revision == 1


async def test_a_journal_of_a_dead_writer_counts_once(wipeable: tuple[Installation, redis.asyncio.Redis]) -> None:
    place, _ = wipeable
    flusher = place.flusher()
    await flusher.flush()
    core = await place.core()
    allowed = sum([(await place.ask(core, "t")).allow for _ in range(25)])
    await core.abandon()  # as kill -9 leaves it
    heir = await place.core()

    async def adopted() -> bool:
        await flusher.flush()
        return len(list((place.directory / "one" / "journals").iterdir())) == 1

    await until(adopted)
    assert await place.counted("t") == allowed
    rest = await allowed_in_all(place, heir, flusher, "t")
    assert allowed + rest == 100
    await heir.abandon()


async def test_a_cap_is_exact_when_an_old_copy_takes_over(
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]], redis_prefix: str, database: str, tmp_path: Path
) -> None:
    """A replica that replication did not reach any more is promoted: what it never saw comes back."""
    primary, replica = await fresh_redis(), await fresh_redis()
    options = urlsplit(primary.url)
    async with (
        redis.asyncio.Redis.from_url(replica.url) as copy,
        installation(primary.url, redis_prefix, database, tmp_path) as before,
        installation(replica.url, redis_prefix, database, tmp_path) as after,
    ):
        await before.catalogue()
        flusher = before.flusher(reclaim_after_ms=1_000)
        await flusher.flush()
        core = await before.core(reclaim_after_ms=1_000, lease_ttl_ms=500)
        first = sum([(await before.ask(core, "t")).allow for _ in range(20)])
        await settled(before, core, flusher, "t", first)
        await copy.config_set("masterauth", options.password or "")
        await copy.replicaof("127.0.0.1", options.port)

        async def copied() -> bool:
            return bool((await copy.info("replication"))["master_link_status"] == "up")

        await until(copied)
        await copy.replicaof("NO", "ONE")
        first += sum([(await before.ask(core, "t")).allow for _ in range(30)])
        await settled(before, core, flusher, "t", first)
        await core.abandon()
        flusher = after.flusher(reclaim_after_ms=1_000)
        heir = await after.core(reclaim_after_ms=1_000, lease_ttl_ms=500)
        rest = await allowed_in_all(after, heir, flusher, "t")
        assert first + rest == 100
        await heir.abandon()


@pytest.mark.parametrize("old_has_restored", [True, False])
async def test_what_only_the_old_primary_heard_counts_at_the_new_one_though_its_worker_is_gone(
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]],
    redis_prefix: str,
    database: str,
    tmp_path: Path,
    old_has_restored: bool,
) -> None:
    """The new primary restored before the ledger heard of it, and nobody is left to report it there."""
    old, new = await fresh_redis(), await fresh_redis()
    async with (
        redis.asyncio.Redis.from_url(old.url) as direct,
        installation(old.url, redis_prefix, database, tmp_path) as before,
        installation(new.url, redis_prefix, database, tmp_path) as after,
    ):
        await before.catalogue()
        await before.tenant("t", "plus")
        flusher, successor = before.flusher(), after.flusher()
        await flusher.flush()
        core = await before.core()
        first = sum([(await before.ask(core, "t")).allow for _ in range(5)])
        await settled(before, core, flusher, "t", first)
        await successor.flush()
        shard, month = before.keys.shard_of("t"), bounds("month", before.clock.wall_s())[0]
        # A pass that the new primary was told of and that went no further: the epoch does not give the old one away.
        async with before.ledger.shard(shard) as tx:
            assert tx is not None
            epoch = (await tx.state()).epoch
        await after.store.collect(shard, epoch, 1_000, 60_000)
        if not old_has_restored:
            await direct.hset(before.keys.epoch(shard), "state", "held")
        second = sum([(await before.ask(core, "t")).allow for _ in range(5)])
        await core.flush()
        await flusher.flush()
        await core.stop(5)
        assert not list((tmp_path / "one" / "journals").iterdir())
        assert await before.counted("t") == first + second == 10
        await successor.flush()
        assert int((await after.store.limit("t", "api_calls", month))["spent"]) == 10


async def test_a_worker_starts_with_the_catalogue_it_kept_while_redis_is_away(
    fresh_redis: Callable[[], Awaitable[EmbeddedRedis]], redis_prefix: str, database: str, tmp_path: Path
) -> None:
    server = await fresh_redis()
    async with installation(server.url, redis_prefix, database, tmp_path) as place:
        await place.catalogue()
        await place.flusher().flush()
        core = await place.core()
        await core.abandon()
        await server.stop()
        again = await place.core()
        assert again.enforcer.policy.revision == 1
        assert (await place.ask(again, "t")).status == 503
        await again.abandon()
        await server.start()
