"""The flusher between a real Redis and a real Postgres: nothing is cleared too early, nothing is lost on the way."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio

from sidecar.embedded import EmbeddedRedis
from sidecar.errors import LedgerUnavailable
from sidecar.ledger import keys, tenants
from sidecar.ledger.epochs import VOUCHED_MS
from sidecar.ledger.projector import REVISIONS_LEFT_BEHIND, Projector
from sidecar.store import snapshots
from sidecar.store.messages import SyncMessage, TenantReport
from tests.servers.installation import CATALOGUE, Installation, installation

WRITER = "00000000000000aa"
OTHER = "00000000000000bb"


@pytest.fixture
async def place(
    redis_server: EmbeddedRedis, redis_prefix: str, database: str, tmp_path: Path
) -> AsyncIterator[Installation]:
    async with installation(redis_server.url, redis_prefix, database, tmp_path) as opened:
        yield opened


async def report(place: Installation, tenant: str, amount: int, *, writer: str = WRITER, hours_ago: int = 0) -> int:
    """Report a window as a writer would, without leases; returns the version after which the ledger has it."""
    hour = place.clock.wall_s() // 3600 - hours_ago
    period = 1_793_491_200
    shard = place.keys.shard_of(tenant)
    part = TenantReport(tenant, 2**40, [("api_calls", period, hour, amount)], [])
    reply = await place.store.sync(shard, SyncMessage(writer, 0, "", 0, [part]), 60_000)
    return reply.version


async def watermark(place: Installation, tenant: str) -> int:
    reply = await place.store.sync(place.keys.shard_of(tenant), SyncMessage(WRITER, 0, "", 0, []), 60_000)
    return reply.watermark


async def spent(place: Installation, tenant: str) -> int:
    """What Redis holds against the monthly limit of the tenant."""
    now_s = place.clock.wall_s()
    from sidecar.catalogue.period import bounds  # noqa: PLC0415 - next to its only use

    return int((await place.store.limit(tenant, "api_calls", bounds("month", now_s)[0])).get("spent", 0))


async def test_a_window_reaches_the_ledger_and_the_watermark_says_so(place: Installation) -> None:
    await place.catalogue()
    version = await report(place, "t", 7)
    assert await watermark(place, "t") < version
    await place.flusher().flush()
    assert await watermark(place, "t") >= version
    assert await place.counted("t") == 7


async def test_a_window_that_grew_after_it_was_read_stays_dirty(place: Installation) -> None:
    await place.catalogue()
    await report(place, "t", 7)
    shard = place.keys.shard_of("t")
    read = await place.store.collect(shard, 0, 100, 60_000)
    version = await report(place, "t", 9)
    marks = [(w.tenant, w.series, w.period, w.hour, w.version) for w in read.windows]
    settled = await place.store.settle(shard, read.generation, 1, marks)
    assert settled < version
    await place.flusher().flush()
    assert await place.counted("t") == 9
    assert await watermark(place, "t") >= version


async def test_reports_of_two_writers_add_up_and_repeats_change_nothing(place: Installation) -> None:
    await place.catalogue()
    flusher = place.flusher()
    for _ in range(2):
        await report(place, "t", 5)
        await report(place, "t", 8, writer=OTHER)
        await report(place, "t", 3)
        await flusher.flush()
    assert await place.counted("t") == 13


async def test_two_flushers_share_the_shards(place: Installation) -> None:
    await place.catalogue()
    one, two = place.flusher(), place.flusher()
    names = [f"tenant-{number}" for number in range(40)]
    for name in names:
        await report(place, name, 1)
    import asyncio  # noqa: PLC0415 - only here

    await asyncio.gather(one.flush(), two.flush())
    assert [await place.counted(name) for name in names] == [1] * len(names)


async def test_a_tenant_nobody_put_is_introduced_with_what_it_counted(place: Installation) -> None:
    await place.catalogue()
    await report(place, "stranger", 4)
    await place.flusher().flush()
    async with place.ledger.transaction() as tx:
        found = await tenants.show(tx, "stranger")
    assert (found.origin, found.plan) == ("introduced", "free")


async def test_a_new_limit_starts_from_what_its_period_has_used(place: Installation) -> None:
    await place.catalogue(CATALOGUE.replace("period: month", "period: day"))
    flusher = place.flusher()
    await place.tenant("t", "plus")
    await flusher.flush()
    await report(place, "t", 40)
    await flusher.flush()
    await place.catalogue()
    await flusher.flush()
    assert await spent(place, "t") == 40


async def test_an_old_window_moves_spent_through_the_ledger_and_once(place: Installation) -> None:
    """Its hash in Redis may have expired: what it adds is only known to the ledger."""
    await place.catalogue(CATALOGUE.replace("period: month", "period: lifetime"))
    flusher = place.flusher()
    await place.tenant("t", "plus")
    await flusher.flush()
    for _ in range(2):
        await report(place, "t", 30, hours_ago=100)
        await report(place, "t", 2)
        await flusher.flush()
    found = await place.store.limit("t", "api_calls", 0)
    assert int(found["spent"]) == 32
    assert await place.counted("t") == 32


async def test_what_happened_two_days_ago_still_counts_after_a_plan_change(place: Installation) -> None:
    await place.catalogue(CATALOGUE.replace("period: month", "period: lifetime"))
    flusher = place.flusher()
    await place.tenant("t", "plus")
    await flusher.flush()
    await report(place, "t", 30)
    await flusher.flush()
    place.clock.advance(49 * 3_600_000)
    await report(place, "t", 5)
    await flusher.flush()
    async with place.ledger.transaction() as tx:
        await tenants.change_plan(tx, "t", "free", actor="test")
    await flusher.flush()
    assert int((await place.store.limit("t", "api_calls", 0))["spent"]) == 35


async def test_a_revoked_key_is_gone_and_a_created_one_is_known(place: Installation) -> None:
    await place.catalogue()
    flusher = place.flusher()
    await place.tenant("t", "plus")
    async with place.ledger.transaction() as tx:
        created = await keys.create(tx, "t", actor="test")
    await flusher.flush()
    assert await place.store.tenant_of_key(created.row.sha256) == "t"
    async with place.ledger.transaction() as tx:
        await keys.revoke(tx, created.row.sha256, actor="test")
    await flusher.flush()
    assert await place.store.tenant_of_key(created.row.sha256) is None


async def test_a_ledger_restored_from_a_backup_gets_everything_again(place: Installation) -> None:
    await place.catalogue()
    flusher = place.flusher()
    await report(place, "t", 7)
    await flusher.flush()
    async with place.ledger.transaction() as tx:
        connection = tx._connection
        await connection.execute("delete from usage_windows")
        await connection.execute("delete from usage_counters")
        await connection.execute("update shards set epoch = 0")
    assert await place.counted("t") == 0
    await place.flusher().flush()
    assert await place.counted("t") == 7


async def test_after_a_restore_a_tenant_has_a_revision_beyond_all_that_may_be_on_its_way(place: Installation) -> None:
    """A snapshot of before that comes late would bring back a plan that the ledger has forgotten."""
    await place.catalogue()
    await place.tenant("t", "plus")
    await report(place, "t", 7)
    await place.flusher().flush()
    before = (await place.store.lookup("t")).revision
    async with place.ledger.transaction() as tx:
        await tx._connection.execute("update shards set epoch = 0")
    await place.flusher().flush()
    assert (await place.store.lookup("t")).revision > before + REVISIONS_LEFT_BEHIND


async def test_a_second_restore_to_before_the_first_leaves_behind_what_the_first_one_gave(place: Installation) -> None:
    await place.catalogue()
    await place.tenant("t", "plus")
    await place.tenant("u", "plus")
    await report(place, "t", 7)
    await place.flusher().flush()
    async with place.ledger.transaction() as tx:
        await tx._connection.execute("select setval('revisions', $1::bigint)", 3 * REVISIONS_LEFT_BEHIND)
        await tx._connection.execute("update tenants set rev = nextval('revisions')")
    await place.flusher().flush()
    async with place.ledger.transaction() as tx:
        await tx._connection.execute("select setval('revisions', 10)")
        await tx._connection.execute("update tenants set plan = 'free', rev = nextval('revisions'), projected_rev = 0")
        await tx._connection.execute("update shards set epoch = 0")
    flusher = place.flusher()
    for _ in range(3):
        # Of two shards that set the sequence at once the second comes later.
        with contextlib.suppress(LedgerUnavailable):
            await flusher.flush()
            await flusher.project()
    found = [await place.store.lookup(name) for name in ("t", "u")]
    assert [snapshots.decode(one.document).plan for one in found] == ["free", "free"]
    revisions = [one.revision for one in found]
    assert min(revisions) > 4 * REVISIONS_LEFT_BEHIND
    assert max(revisions) < 6 * REVISIONS_LEFT_BEHIND, "one step for all that a shard has"


async def test_a_catalogue_whose_number_was_given_before_the_restore_takes_the_place_of_that_one(
    place: Installation,
) -> None:
    """Nobody looked between the restore and the next catalogue, so the number never seemed to go down."""
    await place.catalogue()
    await place.tenant("t", "plus")
    flusher = place.flusher()
    await report(place, "t", 7)
    await flusher.flush()
    other = CATALOGUE.replace("period: month", "period: day")
    async with place.ledger.transaction() as tx:
        await tx._connection.execute("update plan_versions set document = $1", other)
        await tx._connection.execute("update shards set epoch = 0")
        await tx._connection.execute("update tenants set rev = rev + 1")
    await flusher.flush()
    await flusher.project()
    stored = await place.store.catalogue()
    assert stored is not None
    assert stored.text == other
    found = snapshots.decode((await place.store.lookup("t")).document)
    assert {limit.period for limit in found.limits} == {"day"}


async def test_a_flusher_that_did_not_notice_a_restore_goes_by_the_catalogue_that_has_the_lost_ones_number(
    place: Installation,
) -> None:
    """Another one noticed, and vouched for the ledger again; what this one has parsed is of the lost ledger."""
    await place.catalogue()
    await place.tenant("t", "plus")
    first, second = place.flusher(), place.flusher()
    await first.flush()
    await second.flush()
    other = CATALOGUE.replace("period: month", "period: day")
    async with place.ledger.transaction() as tx:
        await tx._connection.execute(
            "update plan_versions set document = $1, created = created + interval '1 hour'", other
        )
        await tx._connection.execute("update tenants set rev = nextval('revisions')")
    await second.project()
    found = snapshots.decode((await place.store.lookup("t")).document)
    assert {limit.period for limit in found.limits} == {"day"}
    stored = await place.store.catalogue()
    assert stored is not None
    assert stored.text == other
    await place.tenant("u", "plus")
    await first.project()
    found = snapshots.decode((await place.store.lookup("u")).document)
    assert {limit.period for limit in found.limits} == {"day"}


async def test_what_another_server_got_is_projected_to_this_one(place: Installation) -> None:
    """In a split brain the mark in the ledger may speak of the old primary; an idle shard is looked at, too."""
    await place.catalogue()
    await place.tenant("t", "free")
    flusher = place.flusher()
    await flusher.flush()
    await place.tenant("t", "plus")
    async with place.ledger.transaction() as tx:
        await tx._connection.execute("update tenants set projected_rev = rev")
        await tx._connection.execute("update shards set generation = 'another'")
    await flusher.project()
    await flusher.pass_all()
    assert snapshots.decode((await place.store.lookup("t")).document).plan == "plus"


async def test_a_snapshot_waits_for_old_windows_that_came_during_its_pass(place: Installation) -> None:
    await place.catalogue()
    await place.tenant("t", "free")
    flusher = place.flusher()
    await flusher.flush()
    await place.tenant("t", "plus")
    shard = place.keys.shard_of("t")
    before = await place.store.collect(shard, 0, 0, 60_000)
    await report(place, "t", 7, hours_ago=60)
    async with place.ledger.shard(shard) as tx:
        assert tx is not None
        assert await Projector(place.store, place.clock).tenants(tx, before, before.version) == ([], False)
    await flusher.flush()
    assert snapshots.decode((await place.store.lookup("t")).document).plan == "plus"
    assert await place.counted("t") == 7


async def test_a_flusher_vouches_only_for_a_ledger_that_is_as_new_as_redis(place: Installation) -> None:
    await place.catalogue()
    await report(place, "t", 7)
    flusher = place.flusher()
    assert not flusher.vouches(await epochs(place))
    await flusher.flush()
    before = await epochs(place)
    assert flusher.vouches(before)
    await report(place, "t", 9)
    await flusher.flush()
    assert flusher.vouches(await epochs(place))
    assert not flusher.vouches(before)
    # A ledger from a backup is found out by a flusher that never saw it in its newer form, too.
    ledger_id = await sql(place, "select ledger_id from installation")
    await sql(place, "update shards set epoch = 0")
    other = place.flusher()
    await other.flush()
    assert other.vouches(await epochs(place))
    assert await sql(place, "select ledger_id from installation") != ledger_id


async def test_what_redis_said_long_ago_vouches_for_nothing(
    place: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stood still for days knows neither of a backup that was restored nor of what was sent since."""
    await place.catalogue()
    await report(place, "t", 7)
    flusher = place.flusher()
    await flusher.flush()
    assert flusher.vouches(await epochs(place))
    now_ms = place.clock.monotonic_ms()
    monkeypatch.setattr(type(place.clock), "monotonic_ms", lambda _: now_ms + VOUCHED_MS)
    assert not flusher.vouches(await epochs(place))
    await flusher.pass_all()
    assert flusher.vouches(await epochs(place))


async def epochs(place: Installation) -> dict[int, int]:
    async with place.ledger.transaction() as tx:
        return {int(row[0]): int(row[1]) for row in await tx.rows("shard_states")}


async def sql(place: Installation, text: str) -> object:
    async with place.ledger.transaction() as tx:
        return await tx._connection.fetchval(text)


async def test_units_taken_back_in_an_idle_shard_are_in_the_ledger_with_the_next_pass(
    place: Installation, redis_server: EmbeddedRedis
) -> None:
    """A shard whose marks stay as they are is looked at by script every half minute only."""
    await place.catalogue()
    flusher = place.flusher(hold="full")
    shard = place.keys.shard_of("t")
    await flusher.flush()
    await flusher.pass_all()
    looks = flusher._store.calls["collect"]
    await flusher.pass_all()
    assert flusher._store.calls["collect"] == looks
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        generation = await client.hget(place.keys.epoch(shard), "gen")
        assert generation is not None
        await client.hincrby(place.keys.epoch(shard), "lost", 5)
        await client.hincrby(place.keys.reclaimed(shard), generation, 5)
    await flusher.pass_all()
    async with place.ledger.transaction() as tx:
        [row] = await tx._connection.fetch("select units from lost_leases where shard = $1", shard)
    assert row[0] == 5
