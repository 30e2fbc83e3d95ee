"""Folding: counters of windows that are long over become marks beside their totals, and nothing else changes."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from sidecar.billing.outbox.counters import BillingCounters
from sidecar.billing.outbox.outbox import Outbox
from sidecar.catalogue.load import parse
from sidecar.embedded import EmbeddedRedis
from sidecar.enforcement.adoption import Adoption
from sidecar.errors import LedgerUnavailable
from sidecar.ledger import folding, usage
from sidecar.ledger.connection import Ledger
from sidecar.ledger.shard import CounterRow
from sidecar.telemetry import CoreCounters, FlusherCounters
from sidecar.usage.journal import Journal
from sidecar.usage.window import WindowKey
from sidecar.verification import Verifier
from tests.servers.forwarding import HOUR_S, Forwarding
from tests.servers.installation import CATALOGUE, Installation, installation

SHARDS = 2
NOW = int(time.time()) // 3600
OLD = NOW - 100
PERIOD_S = (NOW - 1_000) * 3600
WRITERS = ["00000000000000aa", "9f00000000000001", "ffffffffffffffff"]
MOST = 1_000_000
names = (f"tenant-{number}" for number in itertools.count())

Key = tuple[str, str, int, int, str]
cells = st.tuples(
    st.sampled_from(["api_calls", "llm_tokens"]),
    st.sampled_from(["", "burst:search"]),
    st.sampled_from([PERIOD_S, PERIOD_S + 1800]),
    st.sampled_from([OLD - 1, OLD, NOW - 1, NOW]),
    st.sampled_from(WRITERS),
)
amounts = st.integers(1, 8) | st.integers(0, 2**53 - 1)
merges = st.lists(st.tuples(cells, amounts), min_size=1, max_size=12)
folds = st.sampled_from([1, 2, 3, 5, MOST])


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(database, shards=SHARDS)
    yield opened
    await opened.close()


@pytest.fixture
async def site(
    redis_server: EmbeddedRedis, redis_prefix: str, database: str, tmp_path: Path
) -> AsyncIterator[Installation]:
    async with installation(redis_server.url, redis_prefix, database, tmp_path) as opened:
        await opened.catalogue()
        yield opened


def tenant_of(shard: int) -> str:
    return next(name for name in names if zlib.crc32(name.encode()) % SHARDS == shard)


def row(tenant: str, amount: int, writer: str = WRITERS[0], hour: int = OLD) -> CounterRow:
    return CounterRow(tenant, "api_calls", "", PERIOD_S, hour, writer, amount)


def _counter(tenant: str, cell: Key, amount: int) -> CounterRow:
    return CounterRow(tenant, *cell, amount)


async def merge(ledger: Ledger, rows: list[CounterRow]) -> int:
    async with ledger.shard(zlib.crc32(rows[0].tenant.encode()) % SHARDS) as tx:
        assert tx is not None
        return await tx.merge(rows, "free")


async def fold(ledger: Ledger, shard: int, most: int = MOST) -> int:
    async with ledger.shard(shard) as tx:
        return await tx.fold(most) if tx is not None else 0


async def fetch(ledger: Ledger, text: str, *arguments: Any) -> list[Any]:
    async with ledger.transaction() as tx:
        return list(await tx._connection.fetch(text, *arguments))


async def counted(ledger: Ledger, tenant: str) -> dict[Key, int]:
    """Every writer's part, and nothing in two places."""
    async with ledger.transaction() as tx:
        rows = await usage.counters(tx, tenant, 0)
    found = {(one.metric, one.scope, one.period_s, one.hour, one.writer): one.amount for one in rows}
    assert len(found) == len(rows)
    return found


async def totals(ledger: Ledger, tenant: str) -> dict[tuple[str, str, int, int], int]:
    rows = await fetch(
        ledger,
        "select metric, scope, extract(epoch from period)::bigint, extract(epoch from hour)::bigint / 3600, amount"
        " from usage_windows where tenant = $1",
        tenant,
    )
    return {(one[0], one[1], one[2], one[3]): one[4] for one in rows}


async def recent(ledger: Ledger, shard: int, tenant: str) -> list[CounterRow]:
    """What a restore would bring back of a tenant, without its name."""
    async with ledger.shard(shard) as tx:
        assert tx is not None
        rows = [structs.replace(one, tenant="") for one in await tx.recent_counters(OLD - 1) if one.tenant == tenant]
    return sorted(rows, key=repr)


async def left(ledger: Ledger, tenant: str) -> int:
    """How many counters of a tenant have a row of their own."""
    return int((await fetch(ledger, "select count(*) from usage_counters where tenant = $1", tenant))[0][0])


async def drift(ledger: Ledger) -> list[usage.Drift]:
    async with ledger.transaction() as tx:
        return await usage.drift(tx, 0)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(merges | folds, max_size=10))
async def test_a_ledger_that_is_folded_says_what_one_that_never_was_says(ledger: Ledger, steps: list[Any]) -> None:
    """The same messages in the same order for two tenants; only the windows of one are ever folded."""
    folded, plain = tenant_of(0), tenant_of(1)
    before: dict[tuple[str, str, int, int], int] = {}
    for step in steps:
        if isinstance(step, int):
            await fold(ledger, 0, step)
        else:
            grown = [await merge(ledger, [_counter(one, *part) for part in step]) for one in (folded, plain)]
            assert grown[0] == grown[1]
        now = await totals(ledger, folded)
        assert now == await totals(ledger, plain)
        assert all(now[window] >= amount for window, amount in before.items()), "the ledger decreased"
        assert await counted(ledger, folded) == await counted(ledger, plain)
        assert await drift(ledger) == []
        before = now
    assert await recent(ledger, 0, folded) == await recent(ledger, 1, plain)


@pytest.mark.parametrize(
    ("again", "grown", "total"),
    [
        ([row("t", 40)], 0, 47),
        ([row("t", 39)], 0, 47),
        ([row("t", 41)], 1, 48),
        ([row("t", 40), row("t", 7, WRITERS[1]), row("t", 3, WRITERS[1])], 0, 47),
        ([row("t", 5, WRITERS[2])], 1, 52),
        ([row("t", 41), row("t", 7, WRITERS[1]), row("t", 5, WRITERS[2]), row("t", 41)], 2, 53),
        ([row("t", 40, hour=OLD + 1)], 1, 47),
    ],
    ids=["equal", "lower", "higher", "two writers", "a new writer", "mixed", "another window"],
)
async def test_whatever_comes_for_a_folded_window_adds_what_was_not_counted_before(
    ledger: Ledger, again: list[CounterRow], grown: int, total: int
) -> None:
    tenant = tenant_of(0)
    await merge(ledger, [row(tenant, 40), row(tenant, 7, WRITERS[1])])
    assert await fold(ledger, 0) == 2
    for repeat in range(3):
        rows = [structs.replace(one, tenant=tenant) for one in again]
        assert await merge(ledger, rows) == (0 if repeat else grown)
        assert (await totals(ledger, tenant))["api_calls", "", PERIOD_S, OLD] == total
        assert await drift(ledger) == []
        await fold(ledger, 0)
        assert await left(ledger, tenant) == 0


async def test_only_windows_that_are_long_over_are_folded(ledger: Ledger) -> None:
    tenant = tenant_of(0)
    hours = [NOW - 100, NOW - 73, NOW - 71, NOW - 49, NOW - 1, NOW]
    await merge(ledger, [row(tenant, 1, hour=hour) for hour in hours])
    assert await fold(ledger, 0) == 2
    found = await fetch(ledger, "select count(*) from usage_counters where hour > ledger_now() - interval '73 hours'")
    assert found[0][0] == await left(ledger, tenant) == 4


async def test_a_window_may_be_folded_in_parts(ledger: Ledger) -> None:
    tenant = tenant_of(0)
    await merge(ledger, [row(tenant, n + 1, writer) for n, writer in enumerate(WRITERS)])
    before = await counted(ledger, tenant)
    assert [await fold(ledger, 0, 2), await left(ledger, tenant)] == [2, 1]
    assert await counted(ledger, tenant) == before
    assert await drift(ledger) == []
    assert [await fold(ledger, 0, 2), await fold(ledger, 0, 2), await left(ledger, tenant)] == [1, 0, 0]
    assert await counted(ledger, tenant) == before


async def test_a_restore_finds_folded_windows_whatever_the_clocks_say(ledger: Ledger) -> None:
    """Redis' clock may be days behind, and with it the hour from which a restore reads."""
    tenant = tenant_of(0)
    await merge(ledger, [row(tenant, 3), row(tenant, 4, WRITERS[2]), row(tenant, 5, hour=NOW)])
    async with ledger.shard(0) as tx:
        assert tx is not None
        before = await tx.recent_counters(OLD)
        assert await tx.fold(MOST) == 2
        assert sorted(await tx.recent_counters(OLD), key=repr) == sorted(before, key=repr)
        assert await tx.recent_counters(NOW) == [row(tenant, 5, hour=NOW)]


async def test_a_pass_that_dies_between_folding_and_commit_leaves_the_counters(ledger: Ledger) -> None:
    tenant = tenant_of(0)
    await merge(ledger, [row(tenant, 3), row(tenant, 4, WRITERS[1])])
    before = await counted(ledger, tenant)

    async def die() -> None:
        async with ledger.shard(0) as tx:
            assert tx is not None
            assert await tx.fold(MOST) == 2
            assert await tx.merge([row(tenant, 9)]) == 1
            backend = await tx._connection.fetchval("select pg_backend_pid()")
            await fetch(ledger, "select pg_terminate_backend($1, 5000)", backend)

    with pytest.raises(LedgerUnavailable):
        await die()
    assert [await left(ledger, tenant), await counted(ledger, tenant)] == [2, before]
    assert await fold(ledger, 0) == 2
    assert [await left(ledger, tenant), await counted(ledger, tenant)] == [0, before]


async def test_flushers_that_fold_and_merge_at_once_lose_nothing(database: str) -> None:
    ledgers = [await Ledger.open(database, shards=SHARDS) for _ in range(3)]
    tenant = tenant_of(0)
    sent = {(hour, writer): 0 for hour in range(OLD, OLD + 6) for writer in WRITERS}

    async def fold_on(ledger: Ledger) -> None:
        for most in (1, 4, MOST) * 8:
            await fold(ledger, 0, most)

    async def merge_on(ledger: Ledger) -> None:
        for turn in range(1, 30):
            for hour, writer in sent:
                sent[hour, writer] = turn
            rows = [row(tenant, amount, writer, hour) for (hour, writer), amount in sent.items()]
            while True:
                async with ledger.shard(0) as tx:
                    if tx is not None:
                        await tx.merge(rows, "free")
                        break

    await asyncio.gather(fold_on(ledgers[0]), fold_on(ledgers[1]), merge_on(ledgers[2]))
    assert await fold(ledgers[0], 0) + await left(ledgers[0], tenant) >= 0
    assert {(key[3], key[4]): amount for key, amount in (await counted(ledgers[0], tenant)).items()} == sent
    assert sum((await totals(ledgers[0], tenant)).values()) == 29 * len(sent)
    assert await drift(ledgers[0]) == []
    for ledger in ledgers:
        await ledger.close()


async def test_a_flusher_of_an_earlier_version_does_no_lasting_harm(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It merges without unfolding, so a counter stands beside a mark of the same writer."""
    tenant = tenant_of(0)

    async def not_known(*_arguments: object) -> None:
        pass

    for again in (False, True):
        await merge(ledger, [row(tenant, 40), row(tenant, 7, WRITERS[1])])
        await fold(ledger, 0)
        with monkeypatch.context() as patched:
            patched.setattr("sidecar.ledger.shard.ShardTransaction._unfold", not_known)
            await merge(ledger, [row(tenant, 40), row(tenant, 6, WRITERS[1])])
        if again:
            await fold(ledger, 0)
            assert await drift(ledger) == []
        await merge(ledger, [row(tenant, 40), row(tenant, 7, WRITERS[1])])
        assert list((await counted(ledger, tenant)).values()) == [40, 7]
        assert await drift(ledger) == []


async def test_by_hand_a_shard_is_folded_only_when_nobody_has_it(ledger: Ledger) -> None:
    tenant = tenant_of(0)
    await merge(ledger, [row(tenant, 3)])
    async with ledger.shard(0) as tx:
        assert tx is not None
        assert (await fetch(ledger, "select fold_counters(0, 10)"))[0][0] == 0
    assert (await fetch(ledger, "select fold_counters(0, 10)"))[0][0] == 1


async def test_a_flushers_login_folds_and_may_still_not_delete(ledger: Ledger, database: str) -> None:
    tenant, name, password = tenant_of(0), f"u{secrets.token_hex(6)}", secrets.token_hex(8)
    await merge(ledger, [row(tenant, 3)])
    await fetch(ledger, f"create role {name} login password '{password}' in role sidecar_admin")
    parts = urlsplit(database)
    try:
        theirs = await Ledger.open(
            f"postgresql://{name}:{password}@{parts.hostname}:{parts.port}{parts.path}", shards=2
        )
        assert await fold(theirs, 0) == 1
        assert await merge(theirs, [row(tenant, 4)]) == 1
        await theirs.ensure_partitions(NOW * 3600)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await fetch(theirs, "delete from usage_counters")
        await theirs.close()
    finally:
        await fetch(ledger, f"drop role {name}")
    assert await counted(ledger, tenant) == {("api_calls", "", PERIOD_S, OLD, WRITERS[0]): 4}


async def test_a_difference_made_by_hand_in_a_folded_window_is_drift(ledger: Ledger) -> None:
    tenant = tenant_of(0)
    await merge(ledger, [row(tenant, 3), row(tenant, 4, WRITERS[1])])
    await fold(ledger, 0)
    assert await drift(ledger) == []
    await fetch(ledger, "update usage_windows set amount = amount + 1 where tenant = $1", tenant)
    (found,) = await drift(ledger)
    assert (found.tenant, found.total, found.counted) == (tenant, 8, 7)
    await fetch(ledger, "update usage_windows set amount = 7, marks = substr(marks, 1, 16) where tenant = $1", tenant)
    (found,) = await drift(ledger)
    assert (found.total, found.counted) == (7, 3)


async def test_folding_makes_the_ledger_smaller(ledger: Ledger, database: str) -> None:
    """A long tail, most windows of which have one writer, and a tenant whose windows have two hundred."""
    await ledger.ensure_partitions(OLD * 3600)
    tail = [tenant_of(0) for _ in range(40)]
    hot = tenant_of(0)
    writers = [secrets.token_hex(8) for _ in range(200)]
    hours = range(OLD, OLD + 12)
    await merge(ledger, [row(name, 10_000, writers[n % 4], hour) for n, name in enumerate(tail) for hour in hours])
    for hour in hours:
        await merge(ledger, [row(hot, 2**40, writer, hour) for writer in writers])

    async def size() -> tuple[int, int]:
        connection = await asyncpg.connect(database)
        await connection.execute("vacuum full usage_counters")
        await connection.execute("vacuum full usage_windows")
        await connection.close()
        rows, octets = (
            await fetch(
                ledger,
                "select (select count(*) from usage_counters) + (select count(*) from usage_windows),"
                " sum(pg_total_relation_size(inhrelid))::bigint from pg_inherits"
                " where inhparent in ('usage_counters'::regclass, 'usage_windows'::regclass)",
            )
        )[0]
        return rows, octets

    before = await size()
    windows = len(hours) * (len(tail) + 1)
    counters = len(hours) * (len(tail) + len(writers))
    assert before[0] == windows + counters
    assert await fold(ledger, 0) == counters
    after = await size()
    print(f"{before[0]:,} rows, {before[1]:,} bytes; folded: {after[0]:,} rows, {after[1]:,} bytes")
    assert after[0] == windows
    assert after[1] < before[1] // 2


async def test_months_that_are_folded_lose_their_partition_and_nothing_else(ledger: Ledger) -> None:
    tenant, month = tenant_of(0), 31 * 24
    old = NOW - 4 * month
    await fetch(ledger, "select ensure_partitions(0, to_timestamp($1))", old * 3600)
    await merge(ledger, [row(tenant, 40, hour=old), row(tenant, 5, hour=NOW)])

    async def months() -> list[str]:
        found = await fetch(
            ledger,
            "select inhrelid::regclass::text from pg_inherits where inhparent = 'usage_counters'::regclass order by 1",
        )
        return [one[0] for one in found]

    made = await months()
    await ledger.ensure_partitions(NOW * 3600)
    assert len(await months()) == len(made) - 1, "the one without counters"
    await fold(ledger, 0)
    await ledger.ensure_partitions(NOW * 3600)
    assert len(await months()) == len(made) - 2
    assert "usage_counters_default" in await months()
    assert await merge(ledger, [row(tenant, 40, hour=old)]) == 0
    assert await merge(ledger, [row(tenant, 42, hour=old)]) == 1
    await fold(ledger, 0)
    assert await counted(ledger, tenant) == {
        ("api_calls", "", PERIOD_S, old, WRITERS[0]): 42,
        ("api_calls", "", PERIOD_S, NOW, WRITERS[0]): 5,
    }


async def test_growth_of_a_folded_window_is_billed_and_so_is_what_was_not_decided_before(place: Forwarding) -> None:
    await place.tenants(["a"])
    outbox = Outbox(place.ledger, BillingCounters(), interval_s=300, close_delay_s=HOUR_S)
    shard = zlib.crc32(b"a") % 16
    writer, hour = WRITERS[0], place.now_s // HOUR_S - 100
    period_s = place.now_s // HOUR_S * HOUR_S - 10 * 86_400

    async def grow(amount: int) -> None:
        async with place.ledger.shard(shard) as tx:
            assert tx is not None
            await tx.merge([CounterRow("a", "api_calls", "", period_s, hour, writer, amount)], "free")

    await grow(7)
    assert await fold(place.ledger, shard) == 1
    await place.sql("update billing_customers set looked = true")  # leave it to the hours that were touched
    assert await outbox.decide(shard) == 1
    await place.sql("update stripe_outbox set state = 'delivered', delivered = now()")
    await grow(7)
    assert await outbox.decide(shard) == 0
    await fold(place.ledger, shard)
    await grow(12)
    await fold(place.ledger, shard)
    assert await outbox.decide(shard) == 1
    assert [(one["number"], one["amount"]) for one in await place.rows()] == [(1, 7), (2, 5)]


async def test_a_journal_found_after_its_windows_were_folded_counts_once(
    site: Installation,
    redis_server: EmbeddedRedis,
    redis_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the real adoption, when Redis has forgotten the windows long ago; older and newer copies of a journal."""
    flusher, counters, directory = site.flusher(), CoreCounters(), tmp_path / "journals"
    directory.mkdir()
    monkeypatch.setattr("sidecar.enforcement.adoption.SCAN_INTERVAL_S", 0.02)
    monkeypatch.setattr("sidecar.enforcement.adoption.POLL_INTERVAL_S", 0.02)
    await flusher.flush()
    adoption = asyncio.create_task(Adoption(directory, site.new_store(), counters, 60_000).run())

    async def find(amount: int) -> int:
        """Have a journal adopted whose writer counted so much; returns what the ledger has then."""
        adopted = counters.journals_adopted
        path = directory / f"{WRITERS[1]}.journal"
        journal = Journal(path, WRITERS[1])
        cell = journal.cell(WindowKey("t", "api_calls", PERIOD_S, OLD).encode())
        cell.view[cell.index] = amount
        journal.close(delete=False)
        async with asyncio.timeout(20):
            while counters.journals_adopted == adopted:
                await flusher.flush()
                await asyncio.sleep(0.02)
        assert not path.exists()
        await flusher.fold()
        assert await left(site.ledger, "t") == 0
        async with redis.asyncio.Redis.from_url(redis_server.url) as direct:
            async for key in direct.scan_iter(match=f"{redis_prefix}:*:window*", count=1000):
                await direct.delete(key)
        return await site.counted("t")

    assert [await find(amount) for amount in (7, 5, 7, 10, 7)] == [7, 7, 7, 10, 10]
    adoption.cancel()
    async with site.ledger.transaction() as tx:
        catalogue = parse(CATALOGUE, "test")
        assert await Verifier(site.new_store(), catalogue, [], site.clock.wall_s()).differences(tx) == []


async def test_what_was_folded_is_counted(ledger: Ledger) -> None:
    tenant = tenant_of(0)
    await merge(ledger, [row(tenant, n + 1, writer) for n, writer in enumerate(WRITERS)])
    counters = FlusherCounters(0)
    await folding.fold(ledger, [asyncio.Lock() for _ in range(SHARDS)], counters)
    assert counters.folded == len(WRITERS)
    assert await left(ledger, tenant) == 0
