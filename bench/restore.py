"""Seconds until a wiped Redis has everything back: tenants, their limits with what is used of them, recent windows.

A ledger with ``--tenants`` tenants, each with usage of this hour and of hours that only the ledger answers for, and a
tenth of them with an API key. Redis is wiped; the clock runs from there until every shard may grant again, but for the
hold of ``SIDECAR_RECLAIM_AFTER_MS`` since the wipe: that one is deliberate, runs at the same time, and is said apart
(docs/protocol.md). Then what Redis says of some tenants must be what the ledger says, or there are no numbers.

* ``floor``: Redis alone, taking the same keys back from the values it had before (DUMP and RESTORE, pipelined).

    python bench/restore.py [--tenants 100000]
"""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import redis.asyncio
import uvloop

from bench import report
from sidecar.catalogue.period import bounds
from sidecar.clock import Clock
from sidecar.embedded import EmbeddedPostgres, EmbeddedRedis
from sidecar.ledger import plans
from sidecar.ledger.connection import Ledger
from sidecar.ledger.flusher import Flusher, FlushTerms
from sidecar.ledger.migrate import migrate
from sidecar.ledger.shard import CounterRow
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.telemetry import FlusherCounters

CATALOGUE = """
metrics: {api_calls: {}, llm_tokens: {reported: true}}
plans:
  free:
    price: 0
    limits:
      api_calls: {included: 1000000, period: month, cap: hard}
      burst: {metric: api_calls, included: 1000, period: minute, cap: hard}
      daily: {metric: llm_tokens, included: 100000, period: day, cap: soft}
identity: [{header: x-tenant-id}]
default_plan: free
"""
HOURS_AGO = (0, 30, 60)
AMOUNT = 7
LOOKED_AT = 500
ROWS_AT_ONCE = 5_000
KEYS_AT_ONCE = 1_000
HOLD_MS = 60_000


class Place:
    """A Redis, a Postgres and what one flusher has of them."""

    def __init__(self, server: EmbeddedRedis, ledger: Ledger) -> None:
        self.ledger = ledger
        self.keys = Keyspace()
        self.clock = Clock()
        self.server = server
        self.store = Store(server.url, self.keys, self.clock, identity="bench", timeout_ms=30_000)

    def flusher(self) -> Flusher:
        terms = FlushTerms(interval_ms=1_000, reclaim_after_ms=HOLD_MS, hold="full")
        return Flusher(self.ledger, self.store, self.clock, FlusherCounters(), terms)

    async def fill(self, names: list[str]) -> None:
        """Tenants, their usage and keys, as the ledger has them."""
        hour = self.clock.wall_s() // 3600
        await self.ledger.ensure_partitions(hour * 3600)
        async with self.ledger.transaction() as tx:
            await plans.apply(tx, CATALOGUE, {}, actor="bench")
        shards: list[list[str]] = [[] for _ in range(self.keys.shards)]
        for name in names:
            shards[self.keys.shard_of(name)].append(name)
        for number, mine in enumerate(shards):
            rows = [
                CounterRow(name, "api_calls", "", 0, hour - ago, "00000000000000aa", AMOUNT)
                for ago in HOURS_AGO
                for name in mine
            ]
            async with self.ledger.shard(number) as tx:
                assert tx is not None
                for first in range(0, len(rows), ROWS_AT_ONCE):
                    await tx.merge(rows[first : first + ROWS_AT_ONCE], "free")
        async with self.ledger.transaction() as tx:
            hashes = [f"{number:064x}" for number in range(len(names) // 10)]
            await tx._connection.execute(
                "insert into api_keys (sha256, tenant, name, prefix, shard)"
                " select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int[])",
                hashes,
                names[: len(hashes)],
                [""] * len(hashes),
                ["sk"] * len(hashes),
                [self.keys.shard_of(one) for one in hashes],
            )

    async def agree(self, names: list[str]) -> None:
        """Redis has what the ledger has."""
        start = bounds("month", self.clock.wall_s())[0]
        hour = self.clock.wall_s() // 3600
        used = AMOUNT * sum((hour - ago) * 3600 >= start for ago in HOURS_AGO)
        for name in names[:: max(1, len(names) // LOOKED_AT)]:
            assert (await self.store.lookup(name)).revision > 0, f"{name} is not back"
            spent = (await self.store.limit(name, "api_calls", start)).get("spent")
            assert spent == str(used), f"{name} has used {used}, Redis says {spent}"
        assert await self.store.tenant_of_key(f"{0:064x}") == names[0]


async def floor(direct: redis.asyncio.Redis) -> float:
    """Seconds in which Redis alone takes its keys back."""
    names = [name async for name in direct.scan_iter(count=KEYS_AT_ONCE)]
    kept: list[tuple[bytes, bytes]] = []
    for first in range(0, len(names), KEYS_AT_ONCE):
        async with direct.pipeline(transaction=False) as pipe:
            for name in names[first : first + KEYS_AT_ONCE]:
                pipe.dump(name)
            kept += zip(names[first : first + KEYS_AT_ONCE], await pipe.execute(), strict=True)
    await direct.flushall()
    began = time.perf_counter()
    for first in range(0, len(kept), KEYS_AT_ONCE):
        async with direct.pipeline(transaction=False) as pipe:
            for name, value in kept[first : first + KEYS_AT_ONCE]:
                pipe.restore(name, 0, value)
            await pipe.execute()
    return time.perf_counter() - began


async def measure(place: Place, tenants: int) -> dict[str, Any]:
    names = [f"tenant-{number}" for number in range(tenants)]
    await place.fill(names)
    gc.collect()
    gc.freeze()  # as the program does
    flusher = place.flusher()
    began = time.perf_counter()
    await flusher.flush()
    first_s = time.perf_counter() - began
    await place.agree(names)
    async with redis.asyncio.Redis.from_url(place.server.url) as direct:
        floor_s = await floor(direct)
        await direct.flushall()
        began, cpu = time.perf_counter(), time.process_time()
        await flusher.project()
        await flusher.pass_all()
        seconds = time.perf_counter() - began
        cpu_s = time.process_time() - cpu
        redis_cpu = await direct.info("cpu")
    states = [await place.store.glance(shard) for shard in range(place.keys.shards)]
    assert all(marks.state == b"open" for marks in states), states
    await place.agree(names)
    return {
        "seconds": round(seconds, 2),
        "floor_seconds": round(floor_s, 2),
        "ratio": round(floor_s / seconds, 3),
        "tenants": tenants,
        "hold_seconds": HOLD_MS // 1000,
        "first_projection_seconds": round(first_s, 2),
        "flusher_cpu_seconds": round(cpu_s, 2),
        "redis_cpu_seconds": round(float(redis_cpu["used_cpu_user"]) + float(redis_cpu["used_cpu_sys"]), 2),
    }


async def run(tenants: int) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp(prefix="quota-bench-"))
    directory.chmod(0o755)  # Postgres runs as somebody else when we are root
    server, postgres = EmbeddedRedis(directory / "redis"), EmbeddedPostgres(directory / "postgres")
    try:
        await server.start()
        await postgres.start()
        await migrate(postgres.dsn)
        ledger = await Ledger.open(postgres.dsn, connections_max=8, timeout_s=120)
        place = Place(server, ledger)
        found = await measure(place, tenants)
        await place.store.close()
        await ledger.close()
        return found
    finally:
        await postgres.stop()
        await server.stop()
        shutil.rmtree(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=100_000)
    options = parser.parse_args()
    found = uvloop.run(run(options.tenants))
    print(report.headline())
    print(f"{found['tenants']:,} tenants back after {found['seconds']} s (ratio to Redis alone {found['ratio']:.2f})")
    print(f"granting resumes {found['hold_seconds']} s after the wipe, or then if that is later")
    print(f"CPU of the flusher {found['flusher_cpu_seconds']} s")
    print(f"the first projection of all took {found['first_projection_seconds']} s")
    report.publish("restore", found)


if __name__ == "__main__":
    main()
