"""Rows a second that one flusher carries from Redis to Postgres, as a ratio to Postgres' own upsert of the same rows.

Every round each of ``--writers`` writers reports one window of every tenant to a real Redis, by the sync script; then
the clock runs while one flusher takes all of it to a real, durable Postgres. A row is what one writer counted in one
window. Rounds take turns: counters that are there and grow, as within an hour; and new ones, as when an hour begins.

* ``floor``: the same rows, ready as arrays, upserted into a bare table with the same key and no totals, by as many
  connections in as large transactions.

Afterwards the ledger's totals must be what was reported, or there are no numbers.

    python bench/flusher.py [--tenants 10000] [--writers 4] [--rounds 2]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

from bench import report
from sidecar.clock import Clock
from sidecar.embedded import EmbeddedPostgres, EmbeddedRedis
from sidecar.ledger import plans
from sidecar.ledger.connection import Ledger
from sidecar.ledger.flusher import SHARDS_AT_ONCE, WINDOWS_PER_PASS, Flusher, FlushTerms
from sidecar.ledger.migrate import migrate
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.store.messages import SyncMessage, TenantReport
from sidecar.telemetry import FlusherCounters

CATALOGUE = """
metrics: {api_calls: {}}
plans:
  free: {price: 0, limits: {api_calls: {included: 1000000, period: month, cap: hard}}}
identity: [{header: x-tenant-id}]
default_plan: free
"""
METRIC = "api_calls"
REPORTED_AT_ONCE = 250
FLOOR = """
create table floor (
    shard int, hour timestamptz, tenant text collate "C", metric text collate "C", scope text collate "C",
    period timestamptz, writer text collate "C", amount bigint,
    primary key (shard, hour, tenant, metric, scope, period, writer)) with (fillfactor = 70)
"""
UPSERT = """
insert into floor as f
select $1, to_timestamp(hour * 3600), tenant, $2, '', to_timestamp($3), writer, $4
from unnest($5::text[], $6::text[], $7::bigint[]) as i (tenant, writer, hour)
on conflict (shard, hour, tenant, metric, scope, period, writer)
    do update set amount = greatest(f.amount, excluded.amount)
"""


class Place:
    """A Redis, a Postgres and one flusher."""

    def __init__(
        self, redis: EmbeddedRedis, postgres: EmbeddedPostgres, ledger: Ledger, tenants: int, writers: int
    ) -> None:
        self.redis = redis
        self.postgres = postgres
        self.ledger = ledger
        clock = Clock()
        self.keys = Keyspace()
        self.store = Store(redis.url, self.keys, clock, identity="bench", timeout_ms=30_000)
        self.counters = FlusherCounters()
        terms = FlushTerms(interval_ms=1_000, reclaim_after_ms=60_000, hold="reported")
        self.flusher = Flusher(ledger, self.store, clock, self.counters, terms)
        self.hour = clock.wall_s() // 3600
        self.writers = [f"{number:016x}" for number in range(1, writers + 1)]
        self.shards: list[list[str]] = [[] for _ in range(self.keys.shards)]
        for number in range(tenants):
            name = f"tenant-{number}"
            self.shards[self.keys.shard_of(name)].append(name)

    async def report(self, hour: int, amount: int) -> None:
        """Every writer counted so much for every tenant."""

        async def shard(number: int) -> None:
            names = self.shards[number]
            for first in range(0, len(names), REPORTED_AT_ONCE):
                some = names[first : first + REPORTED_AT_ONCE]
                parts = [TenantReport(name, 2**40, [(METRIC, 0, hour, amount)], []) for name in some]
                for writer in self.writers:
                    await self.store.sync(number, SyncMessage(writer, 0, "", 0, parts), 60_000)

        await asyncio.gather(*(shard(number) for number in range(self.keys.shards)))

    async def flushed(self) -> float:
        """Seconds until the ledger has everything."""
        began = time.perf_counter()
        await self.flusher.pass_all()
        return time.perf_counter() - began

    async def floor(self, pool: asyncpg.Pool[asyncpg.Record], hour: int, amount: int) -> float:
        """Seconds of Postgres' own upsert of the same rows."""
        limit = asyncio.Semaphore(SHARDS_AT_ONCE)
        per_batch = WINDOWS_PER_PASS

        async def shard(number: int, batches: list[tuple[list[str], list[str], list[int]]]) -> None:
            async with limit, pool.acquire() as connection:
                for names, writers, hours in batches:
                    await connection.execute(UPSERT, number, METRIC, 0, amount, names, writers, hours)

        ready = []
        for names in self.shards:
            cut = [names[first : first + per_batch] for first in range(0, len(names), per_batch)]
            many = len(self.writers)
            ready.append(
                [
                    ([n for n in some for _ in range(many)], self.writers * len(some), [hour] * len(some) * many)
                    for some in cut
                ]
            )
        began = time.perf_counter()
        await asyncio.gather(*(shard(number, batches) for number, batches in enumerate(ready)))
        return time.perf_counter() - began

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far of each program."""
        return {"redis": cpu_of(self.redis.pid), "postgres": cpu_of(self.postgres.pid), "flusher": time.process_time()}


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and its children, those that ended included."""
    ticks = 0
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(directory.name) == pid or int(fields[1]) == pid:
                ticks += int(fields[11]) + int(fields[12])
                if int(directory.name) == pid:
                    ticks += int(fields[13]) + int(fields[14])
    return ticks / os.sysconf("SC_CLK_TCK")


async def measure(place: Place, rounds: int) -> dict[str, Any]:
    async with place.ledger.transaction() as tx:
        await plans.apply(tx, CATALOGUE, {}, actor="bench")
    await place.flusher.flush()
    gc.collect()
    gc.freeze()  # as the program does
    await place.ledger.ensure_partitions(place.hour * 3600)
    rows = len(place.writers) * sum(map(len, place.shards))
    pool = await asyncpg.create_pool(place.postgres.dsn, min_size=SHARDS_AT_ONCE, max_size=SHARDS_AT_ONCE)
    await pool.execute(FLOOR)
    taken: dict[str, list[float]] = {"new": [], "grown": []}
    floors: dict[str, list[float]] = {"new": [], "grown": []}
    cpu = dict.fromkeys(place.cpu_s(), 0.0)
    reported = 0
    for turn in range(rounds + 1):  # the first introduces the tenants, and does not count
        hour = place.hour + turn  # older ones would be counted anew through the ledger
        for kind, amount in (("new", 1), ("grown", 2)):
            await place.report(hour, amount)
            before = place.cpu_s()
            took = await place.flushed()
            after = place.cpu_s()
            floor = await place.floor(pool, hour, amount)
            if not turn:
                await place.flusher.flush()
                continue
            cpu = {name: cpu[name] + after[name] - before[name] for name in cpu}
            taken[kind].append(took)
            floors[kind].append(floor)
        reported += rows * 2
    async with place.ledger.transaction() as tx:
        counted = await tx._connection.fetchval("select sum(amount) from usage_windows")
    assert counted == reported, f"the ledger has {counted}, reported were {reported}"
    await pool.close()
    measured = rows * rounds * 2
    per_s = {kind: rows / statistics.median(times) for kind, times in taken.items()}
    floor_per_s = {kind: rows / statistics.median(times) for kind, times in floors.items()}
    whole = 2 / (1 / per_s["new"] + 1 / per_s["grown"])
    floor = 2 / (1 / floor_per_s["new"] + 1 / floor_per_s["grown"])
    return {
        "rows_per_s": round(whole),
        "floor_rows_per_s": round(floor),
        "ratio": round(whole / floor, 3),
        "grown_rows_per_s": round(per_s["grown"]),
        "new_rows_per_s": round(per_s["new"]),
        "rows": rows,
        "writers": len(place.writers),
        "cpu_us_per_row": {name: round(seconds / measured * 1e6, 2) for name, seconds in cpu.items()},
    }


async def run(tenants: int, writers: int, rounds: int) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp(prefix="quota-bench-"))
    directory.chmod(0o755)  # Postgres runs as somebody else when we are root
    redis, postgres = EmbeddedRedis(directory / "redis"), EmbeddedPostgres(directory / "postgres")
    try:
        await redis.start()
        await postgres.start()
        await migrate(postgres.dsn)
        ledger = await Ledger.open(postgres.dsn, connections_max=8, timeout_s=120)
        place = Place(redis, postgres, ledger, tenants, writers)
        found = await measure(place, rounds)
        await place.store.close()
        await ledger.close()
        return found
    finally:
        await postgres.stop()
        await redis.stop()
        shutil.rmtree(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    found = uvloop.run(run(options.tenants, options.writers, options.rounds))
    print(report.headline())
    cpu = ", ".join(f"{name} {spent}" for name, spent in found["cpu_us_per_row"].items())
    print(f"{found['rows']} rows of {found['writers']} writers, median of {options.rounds} rounds")
    print(f"flusher  {found['rows_per_s']:>8,} rows/s   ratio {found['ratio']:.2f}")
    print(f"  growing counters {found['grown_rows_per_s']:,}, new ones {found['new_rows_per_s']:,}")
    print(f"floor    {found['floor_rows_per_s']:>8,} rows/s")
    print(f"us of CPU a row: {cpu}")
    report.publish("flusher", found)


if __name__ == "__main__":
    main()
