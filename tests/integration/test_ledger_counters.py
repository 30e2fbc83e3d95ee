from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import AsyncIterator

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.errors import LedgerRefused
from sidecar.ledger import usage
from sidecar.ledger.connection import Ledger
from sidecar.ledger.shard import CounterRow, ShardState
from sidecar.ledger.spans import Span, SpanTotal

NOVEMBER_S = 1_793_491_200  # 2026-11-01 00:00 UTC
HOUR = NOVEMBER_S // 3600
names = (f"tenant-{number}" for number in itertools.count())

cells = st.tuples(
    st.sampled_from(["api_calls", "llm_tokens"]),
    st.sampled_from(["", "burst:search", "burst:export"]),
    st.sampled_from([NOVEMBER_S, NOVEMBER_S + 1800]),
    st.integers(HOUR - 1, HOUR + 1),
    st.sampled_from(["00000000000000aa", "00000000000000bb", "00000000000000cc"]),
)
reports = st.lists(st.tuples(cells, st.integers(0, 2**40)), max_size=40)


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(database, shards=1)
    yield opened
    await opened.close()


async def merge(ledger: Ledger, rows: list[CounterRow]) -> int:
    async with ledger.shard(0) as tx:
        assert tx is not None
        return await tx.merge(rows, "free")


async def counted(ledger: Ledger, tenant: str) -> dict[tuple[str, str, int, int, str], int]:
    async with ledger.transaction() as tx:
        rows = await usage.counters(tx, tenant, 0)
    return {(row.metric, row.scope, row.period_s, row.hour, row.writer): row.amount for row in rows}


async def windows(database: str, tenant: str) -> dict[tuple[str, str, int, int], int]:
    connection = await asyncpg.connect(database)
    rows = await connection.fetch(
        "select metric, scope, extract(epoch from period)::bigint, extract(epoch from hour)::bigint / 3600, amount"
        " from usage_windows where tenant = $1",
        tenant,
    )
    await connection.close()
    return {(row[0], row[1], row[2], row[3]): row[4] for row in rows}


def row(tenant: str, amount: int, *, writer: str = "w1", hour: int = HOUR, scope: str = "") -> CounterRow:
    return CounterRow(tenant, "api_calls", scope, NOVEMBER_S, hour, writer, amount)


async def test_a_name_may_hold_what_usually_separates_names(ledger: Ledger) -> None:
    """Texts travel joined; a scope comes from outside, and a single empty one must not get lost."""
    tenant = next(names)
    strange = ["users:a\x1fb", "users:\x1f", "users:,{}\\", "users:\U000f0000"]
    await merge(ledger, [row(tenant, 1)])
    await merge(ledger, [row(tenant, 2, scope=scope) for scope in strange])
    found = await counted(ledger, tenant)
    assert {scope: amount for (_, scope, *_), amount in found.items()} == {"": 1, **dict.fromkeys(strange, 2)}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=reports, again=st.randoms(use_true_random=False), size=st.integers(1, 12))
async def test_merging_in_any_order_and_as_often_as_one_likes_gives_the_same_ledger(
    ledger: Ledger, database: str, sent: list[tuple[tuple[str, str, int, int, str], int]], again: object, size: int
) -> None:
    tenant = next(names)
    rows = [CounterRow(tenant, *cell, amount) for cell, amount in sent]
    model: dict[tuple[str, str, int, int, str], int] = {}
    for cell, amount in sent:
        if amount:
            model[cell] = max(model.get(cell, 0), amount)

    delivered = rows + rows[: len(rows) // 2]
    again.shuffle(delivered)  # type: ignore[attr-defined]
    before: dict[tuple[str, str, int, int], int] = {}
    for start in range(0, len(delivered), size):
        await merge(ledger, delivered[start : start + size])
        after = await windows(database, tenant)
        assert all(after[window] >= amount for window, amount in before.items()), "the ledger decreased"
        before = after

    totals: dict[tuple[str, str, int, int], int] = {}
    for (metric, scope, period_s, hour, _), amount in model.items():
        window = (metric, scope, period_s, hour)
        totals[window] = totals.get(window, 0) + amount
    assert await counted(ledger, tenant) == model
    assert await windows(database, tenant) == totals
    assert await merge(ledger, delivered) == 0, "replaying grew something"


async def test_merge_returns_how_many_counters_grew(ledger: Ledger) -> None:
    tenant = next(names)
    assert await merge(ledger, [row(tenant, 5), row(tenant, 7, writer="w2"), row(tenant, 0, writer="w3")]) == 2
    assert await merge(ledger, [row(tenant, 4), row(tenant, 8, writer="w2")]) == 1
    assert await merge(ledger, []) == 0


async def test_a_journal_found_years_later_counts_once(ledger: Ledger, database: str) -> None:
    tenant, old = next(names), HOUR - 5 * 8766
    assert await merge(ledger, [row(tenant, 40, hour=old)]) == 1
    await ledger.ensure_partitions((old + 40 * 24) * 3600)
    assert await merge(ledger, [row(tenant, 40, hour=old), row(tenant, 39, hour=old)]) == 0
    assert await merge(ledger, [row(tenant, 41, hour=old)]) == 1
    assert await windows(database, tenant) == {("api_calls", "", NOVEMBER_S, old): 41}


async def test_usage_of_a_tenant_nobody_put_introduces_it_on_the_default_plan(ledger: Ledger) -> None:
    tenant = next(names)
    async with ledger.shard(0) as tx:
        assert tx is not None
        await tx.merge([row(tenant, 1)], "free")
        pending = await tx.pending_tenants(10)
    assert [(found.tenant, found.plan, found.origin) for found in pending] == [(tenant, "free", "introduced")]


async def test_a_tenant_of_another_shard_is_refused(database: str) -> None:
    ledger = await Ledger.open(database, shards=16)
    tenant = next(names)
    other = (zlib.crc32(tenant.encode()) + 1) % 16
    async with ledger.shard(other) as tx:
        assert tx is not None
        with pytest.raises(LedgerRefused, match=tenant):
            await tx.merge([row(tenant, 1)], "free")
    await ledger.close()


async def test_two_flushers_never_have_the_same_shard(ledger: Ledger) -> None:
    async with ledger.shard(3) as first:
        assert first is not None
        async with ledger.shard(3) as second, ledger.shard(4) as other:
            assert second is None
            assert other is not None
    async with ledger.shard(3) as again:
        assert again is not None


async def test_what_a_failed_pass_did_is_not_there(ledger: Ledger) -> None:
    tenant = next(names)

    async def fail() -> None:
        async with ledger.shard(0) as tx:
            assert tx is not None
            await tx.merge([row(tenant, 9)], "free")
            await tx.raise_epoch()
            raise KeyError(tenant)

    with pytest.raises(KeyError):
        await fail()
    assert await counted(ledger, tenant) == {}
    async with ledger.shard(0) as tx:
        assert tx is not None
        assert await tx.state() == ShardState(0, "")


async def test_the_epoch_only_grows_and_the_generation_is_kept_beside_it(ledger: Ledger) -> None:
    async with ledger.shard(5) as tx:
        assert tx is not None
        await tx.set_generation("g1")
        assert [await tx.raise_epoch(), await tx.raise_epoch(), await tx.raise_epoch(beyond=10)] == [1, 2, 11]
        assert await tx.raise_epoch(beyond=4) == 12
        await tx.set_generation("g2")
        assert await tx.state() == ShardState(12, "g2")


async def test_what_two_servers_tell_of_lost_leases_in_turns_counts_once(ledger: Ledger) -> None:
    """In a split brain two flushers pass over a shard, each at its own server."""
    told: list[int] = []

    async def tell(units: dict[str, int]) -> None:
        async with ledger.shard(6) as tx:
            assert tx is not None
            await tx.set_generation("any")
            await tx.rows("count_lost_leases", 6, list(units), list(units.values()))
            told.extend(int(row[4]) for row in await tx.rows("shard_states") if row[0] == 6)

    await tell({"g1": 31})
    # A copy that was made when it was 20 takes over, while the former one goes on.
    await tell({"g1": 20, "g2": 4})
    await tell({"g1": 33})
    await tell({"g1": 20, "g2": 4})
    # The former one begins another generation, and keeps what it had.
    await tell({"g1": 33, "g3": 2})
    await tell({"g1": 20, "g2": 9})
    await tell({"g1": 33, "g3": 2})
    assert told == [31, 35, 37, 37, 39, 44, 44]
    await tell({})  # a wiped one
    await tell({"g4": 5})
    assert told[-2:] == [44, 49]


async def test_totals_of_many_spans_come_in_one_round_trip(ledger: Ledger) -> None:
    tenant, other = next(names), next(names)
    await merge(
        ledger,
        [
            row(tenant, 1, hour=HOUR),
            row(tenant, 10, hour=HOUR + 1, writer="w2"),
            row(tenant, 100, hour=HOUR + 2),
            CounterRow(tenant, "api_calls", "", NOVEMBER_S - 7200, HOUR, "w1", 1000),
            row(tenant, 3, scope="burst:search"),
            row(tenant, 4, scope="burst:export", hour=HOUR + 1),
            row(tenant, 5, scope="bursting:search"),
        ],
    )
    async with ledger.shard(0) as tx:
        assert tx is not None
        totals = await tx.totals(
            [
                Span(tenant, "api_calls", "", HOUR, HOUR + 2),
                Span(tenant, "api_calls", "", HOUR, HOUR + 3, NOVEMBER_S),
                Span(tenant, "api_calls", "burst", HOUR, HOUR + 3),
                Span(other, "api_calls", "", HOUR, HOUR + 3),
                Span(other, "api_calls", "burst", HOUR, HOUR + 3),
            ]
        )
    assert totals == [
        SpanTotal(0, "", 1011),
        SpanTotal(1, "", 111),
        SpanTotal(2, "burst:export", 4),
        SpanTotal(2, "burst:search", 3),
        SpanTotal(3, "", 0),
    ]


async def test_recent_counters_are_those_of_the_shard_and_of_late_hours(database: str) -> None:
    ledger = await Ledger.open(database, shards=2)
    tenants = [next(names) for _ in range(20)]
    for shard in range(2):
        mine = [tenant for tenant in tenants if zlib.crc32(tenant.encode()) % 2 == shard]
        async with ledger.shard(shard) as tx:
            assert tx is not None
            await tx.merge([row(tenant, 1, hour=hour) for tenant in mine for hour in (HOUR - 1, HOUR)], "free")
            assert {found.tenant for found in await tx.recent_counters(HOUR)} == set(mine)
            assert await tx.recent_counters(HOUR) == [row(found.tenant, 1) for found in await tx.recent_counters(HOUR)]
            assert len(await tx.recent_counters(HOUR - 1)) == 2 * len(mine)
    await ledger.close()


async def test_history_and_periods_add_up_the_tenants_own_windows(ledger: Ledger) -> None:
    tenant = next(names)
    await merge(ledger, [row(tenant, 1), row(tenant, 2, hour=HOUR + 23), row(tenant, 4, hour=HOUR + 24)])
    await merge(ledger, [row(tenant, 8, scope="burst:search")])
    async with ledger.transaction() as tx:
        days = await usage.history(tx, tenant, "day", NOVEMBER_S, NOVEMBER_S + 30 * 86_400)
        hours = await usage.history(tx, tenant, "hour", NOVEMBER_S, NOVEMBER_S + 86_400, "api_calls")
        assert [(day.at_s - NOVEMBER_S, day.amount) for day in days] == [(0, 3), (86_400, 4)]
        assert [(hour.at_s // 3600 - HOUR, hour.amount) for hour in hours] == [(0, 1), (23, 2)]
        assert await usage.by_period(tx, tenant) == [usage.PeriodTotal("api_calls", NOVEMBER_S, 7)]
        assert await usage.by_period(tx, tenant, NOVEMBER_S + 1) == []


@pytest.mark.parametrize(
    ("meddle", "difference"),
    [
        ("update usage_windows set amount = amount - 1", -1),
        ("update usage_counters set amount = amount - 1 where writer = 'w2'", 1),
        ("delete from usage_windows", -11),
        ("delete from usage_counters", 11),
    ],
)
async def test_a_difference_made_by_hand_is_drift(ledger: Ledger, database: str, meddle: str, difference: int) -> None:
    tenant = next(names)
    await merge(ledger, [row(tenant, 5), row(tenant, 6, writer="w2")])
    async with ledger.transaction() as tx:
        assert await usage.drift(tx, HOUR) == []
    connection = await asyncpg.connect(database)
    await connection.execute(meddle)
    await connection.close()
    async with ledger.transaction() as tx:
        (found,) = await usage.drift(tx, HOUR)
        assert await usage.drift(tx, HOUR + 1) == []
    assert (found.tenant, found.hour) == (tenant, HOUR)
    assert found.total - found.counted == difference


async def test_merge_speed_is_printed(ledger: Ledger) -> None:
    """50,000 rows a second are the aim; what it is depends on the machine."""
    await ledger.ensure_partitions(NOVEMBER_S)
    for amount in (1, 2):
        rows = [row(f"speed-{n // 8}", amount, writer=f"{n % 8:016x}", hour=HOUR + n % 2) for n in range(10_000)]
        started = time.perf_counter()
        assert await merge(ledger, rows) == len(rows)
        print(f"{len(rows) / (time.perf_counter() - started):,.0f} rows/s {'new' if amount == 1 else 'grown'}")
