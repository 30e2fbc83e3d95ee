"""The outbox's tables in memory are those of Postgres: the program's own functions do the same to both."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from sidecar.billing.outbox import claim, lanes, outbox, rejection
from sidecar.billing.outbox.claim import ForwarderTerms
from sidecar.billing.outbox.counters import BillingCounters
from sidecar.billing.outbox.delta import Window, identifier
from sidecar.billing.outbox.fate import Fate
from sidecar.billing.outbox.lanes import Release, Work
from sidecar.billing.outbox.row import Row, keys
from sidecar.catalogue.period import bounds
from sidecar.ledger.distrust import distrust
from sidecar.ledger.shard import CounterRow
from tests.servers.forwarding import DAY_S, HOUR_S, METRICS, Forwarding
from tests.simulation.billing.tables import NEVER, Customer, Meters, OutboxServer
from tests.simulation.billing.world import OutboxTransaction
from tests.simulation.scheduler import Process

SHARDS = 16
TENANTS = ("acme", "beta", "gamma")
STEPS = 60
TERMS = ForwarderTerms(interval_s=1, close_delay_s=HOUR_S, calls_per_s=950)
FATES: tuple[dict[str, Any], ...] = (
    {"outcome": "delivered", "state": "delivered"},
    {"outcome": "repeated", "state": "delivered"},
    {"outcome": "unknown", "state": "waiting", "kept": True},
    {"outcome": "busy", "state": "waiting"},
    {"outcome": "unsent", "state": "waiting", "no_effect": True},
    {"outcome": "refused", "state": "in_doubt"},
    {"outcome": "parked", "state": "parked", "no_effect": True},
)
CODES = "archived_meter", "meter_event_invalid_value"
RECORDED_AGAIN = 0.8
ROWS = """
select tenant, metric, extract(epoch from period)::bigint, extract(epoch from hour)::bigint, number, amount,
    value::text::numeric, identifier, extract(epoch from at)::bigint, extract(epoch from deadline)::bigint, late,
    adopted, state, attempt, tries, replays, summed, {times}
from stripe_outbox order by tenant, metric, period, hour, number
"""
LANES = "select tenant, metric, failures, claim, {times} from stripe_lanes order by tenant, metric"
TIMES = "floor(extract(epoch from {name}) * 1000)::bigint"


class Both:
    """A real ledger and one in memory, at the same time of day."""

    def __init__(self, place: Forwarding, random: Random) -> None:
        self.place = place
        self.random = random
        self.now_ms = 0
        anchor_s = place.now_s // HOUR_S * HOUR_S - 10 * DAY_S
        self.anchor_s = anchor_s
        self.memory = OutboxServer(SHARDS, lambda: self.now_ms, Meters(METRICS, anchor_s), lambda: "")
        self.outbox = outbox.Outbox(place.ledger, BillingCounters(), interval_s=1, close_delay_s=HOUR_S)
        self.other = outbox.Outbox(place.ledger, BillingCounters(), interval_s=1, close_delay_s=HOUR_S)
        self.counted: dict[tuple[str, str, int, int], int] = {}

    async def begin(self) -> None:
        await self.place.tenants(TENANTS, anchor_s=self.anchor_s)
        for tenant in TENANTS:
            self.memory.put_tenant(tenant)
            self.memory.tables.customers[tenant] = Customer(tenant)
        await self.same_ledger()

    async def same_ledger(self) -> None:
        found = await self.place.sql("select ledger_id from installation")
        self.memory.tables.about["ledger_id"] = str(found[0][0])

    async def do(self, shard: int, work: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Do the same in a transaction of each; their clocks show the time of the real one."""
        async with self.place.ledger.shard(shard) as tx:
            assert tx is not None
            found = await tx._connection.fetchval("select floor(extract(epoch from ledger_now()) * 1000)::bigint")
            self.now_ms = int(found)
            real = await work(tx)
        mine = OutboxTransaction(self.memory, shard, Process("test"), _at_once, _at_once)
        assert await mine.take()
        remembered = await work(mine)
        mine.commit()
        return real, remembered

    async def compare(self) -> None:
        """Both have the same rows and the same lanes; times to the millisecond."""
        tables = self.memory.tables
        times = ("first_sent", "last_sent", "delivered", "look_at", "reported")
        text = ROWS.format(times=", ".join(TIMES.format(name=name) for name in times))
        real = [tuple(row) for row in await self.place.sql(text)]
        mine = [
            (
                r.tenant, r.metric, r.period_s, r.hour_s, r.number, r.amount, type(real[0][6])(r.value), r.identifier,
                r.at_s, r.deadline_s, r.late, r.adopted, r.state, r.attempt, r.tries, r.replays,
                r.summed,
                r.first_sent, r.last_sent, r.delivered, r.look_at, r.reported,
            )
            for rows in tables.rows.values()
            for r in rows.values()
        ]  # fmt: skip
        assert sorted(mine, key=lambda row: row[:5]) == real
        lane_times = ("due", "not_before", "verified", "nullif(deadline, 'infinity')")
        text = LANES.format(times=", ".join(TIMES.format(name=name) for name in lane_times))
        lanes_mine = [
            (*lane, r.failures, r.claim, r.due, r.not_before, r.verified, None if r.deadline == NEVER else r.deadline)
            for lane, r in tables.lanes.items()
        ]
        assert sorted(lanes_mine) == [tuple(row) for row in await self.place.sql(text)]

    # What may happen.

    async def count(self) -> None:
        tenant, metric = self.random.choice(TENANTS), self.random.choice(list(METRICS))
        at_s = self.place.now_s - self.random.choice((0, 0, HOUR_S, 30 * HOUR_S, 12 * DAY_S))
        period_s = bounds("billing", at_s, self.anchor_s, 1)[0]
        key = (tenant, metric, period_s, at_s // HOUR_S)
        self.counted[key] = self.counted.get(key, 0) + self.random.randrange(1, 3_000)
        rows = [CounterRow(tenant, metric, "", period_s, at_s // HOUR_S, "w1", self.counted[key])]

        async def merge(tx: Any) -> int:
            grown = await tx.merge(rows, "free")
            await tx.raise_epoch()
            return int(grown)

        real, mine = await self.do(shard_of(tenant), merge)
        assert real == mine

    async def decide(self) -> None:
        shard = shard_of(self.random.choice(TENANTS))

        async def decided(tx: Any) -> Any:
            which = self.outbox if isinstance(tx, OutboxTransaction) else self.other
            return await which._pass(tx, shard, "")

        real, mine = await self.do(shard, decided)
        assert real == mine

    async def send(self) -> None:
        """Claim everything, and record some fate of each call; settle what is in doubt some way."""
        token = f"{self.random.getrandbits(64):x}"
        real, mine = await self.do(0, lambda tx: claim.claim(tx, token, 100, TERMS))
        assert (real is None) == (mine is None)
        if real is None:
            return
        chosen = {key_of(work): self.random.choice(FATES) for work, _ in real.sends}
        assert sorted((work.tenant, work.metric, row) for work, row in real.sends) == sorted(
            (work.tenant, work.metric, row) for work, row in mine.sends
        )
        kinds = [sorted((w.tenant, w.metric, step.kind) for w, step in batch.others) for batch in (real, mine)]
        assert kinds[0] == kinds[1]
        for work, step in real.others:
            await (self.verify(work) if step.kind == "verify" else self.settle(work))
        pauses = {key_of(work): self.random.choice((0, 0, 60_000)) for work, _ in [*real.sends, *real.others]}

        async def record(tx: Any) -> None:
            fates = [Fate(row, **chosen[key_of(work)]) for work, row in real.sends]
            given = [Release(token, *lane, int(pause > 0), pause) for lane, pause in pauses.items()]
            await lanes.record(tx, fates, given)

        await self.do(0, record)
        if self.random.random() < RECORDED_AGAIN:  # as when the first commit was not confirmed
            await self.report(frozenset(row.identifier for _, row in real.sends))
            await self.do(0, record)

    async def report(self, among: frozenset[str] = frozenset()) -> None:
        """Stripe tells of an event, of one of these if any, that it did not count it."""
        rows = [row for rows in self.memory.tables.rows.values() for row in rows.values() if row.state != "sending"]
        names = sorted(row.identifier for row in rows if not among or row.identifier in among)
        if names:
            key, code = self.random.choice(names), self.random.choice(CODES)
            real, mine = await self.do(0, lambda tx: rejection.rejected(tx, key, code, "refused"))
            assert real is mine is True

    async def settle(self, work: Work) -> None:
        verdict = self.random.choice(("settle_rows", "new_attempts", "look_later", "park_rows"))
        ledger_id = self.memory.tables.about["ledger_id"]

        async def settled(tx: Any) -> Any:
            found = []
            for (hour_s,) in await tx.rows("hours_in_doubt", work.tenant, work.metric, 3):
                for row in await tx.rows("rows_of_hour", work.tenant, work.metric, int(hour_s)):
                    found.append(tuple(map(str, row)))
                    if not row[-1]:
                        continue
                    window = Window(work.tenant, work.metric, row[0], row[1])
                    key = keys([Row(window, *tuple(row)[2:-6])])
                    more: dict[str, tuple[Any, ...]] = {
                        "new_attempts": ([identifier(ledger_id, window, row[2], row[5] + 1)], ["none"]),
                        "look_later": (["later"], 1_800),
                        "park_rows": (["parked"],),
                    }
                    if verdict == "new_attempts":
                        await outbox.mark_summed(tx, [(work.tenant, work.metric, int(hour_s), int(hour_s) + HOUR_S)])
                    await tx.rows(verdict, *key, *more.get(verdict, ()))
            witness = await tx.value("witness", work.tenant, work.metric, work.now_s - HOUR_S)
            return found, witness

        real, mine = await self.do(shard_of(work.tenant), settled)
        assert real == mine

    async def verify(self, work: Work) -> None:
        async def verified(tx: Any) -> Any:
            ours = await tx.rows("delivered_by_hour", work.tenant, work.metric, work.now_s - 35 * DAY_S)
            unbilled = await tx.rows("unbilled_windows", work.tenant, work.metric)
            await tx.rows("lane_verified", work.tenant, work.metric)
            return [(int(hour_s), float(total)) for hour_s, total in ours], [tuple(row) for row in unbilled]

        real, mine = await self.do(shard_of(work.tenant), verified)
        assert real == mine

    async def pass_time(self) -> None:
        await self.place.advance(self.random.choice((60, 1_900, 24 * HOUR_S, 22 * DAY_S)))

    async def distrusted(self) -> None:
        shard = shard_of(self.random.choice(TENANTS))
        await self.do(shard, lambda tx: distrust(tx, shard=shard))
        await self.same_ledger()


def shard_of(tenant: str) -> int:
    return zlib.crc32(tenant.encode()) % SHARDS


def key_of(work: Work) -> tuple[str, str]:
    return work.tenant, work.metric


async def _at_once(*_about: Any) -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(3))
async def test_the_outbox_in_memory_is_that_of_postgres(place: Forwarding, seed: int) -> None:
    random = Random(seed)
    both = Both(place, random)
    await both.begin()
    happenings = [both.count] * 3 + [both.decide] * 2 + [both.send] * 2 + [both.report, both.pass_time]
    for step in range(STEPS):
        await (both.distrusted() if step % 25 == 24 else random.choice(happenings)())
        if await place.sql("select from stripe_outbox limit 1"):
            await both.compare()
