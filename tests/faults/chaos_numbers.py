"""The numbers of a chaos run, each read where it is kept: Postgres, Stripe, Redis, Envoy, and the programs' metrics."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from sidecar.embedded import EmbeddedRedis
from sidecar.store.keys import Keyspace
from tests.faults.chaos_place import FLUSHERS, Client, Place

POLL_S = 0.05
KEYS = Keyspace()
_UNITS_LOST = re.compile(r"^sidecar_lease_units_lost_total (\S+)$", re.MULTILINE)


class TakenBack:
    """Watches how many lease units Redis takes back from silent writers, by shard, over wipes and failovers.

    In a split brain the old primary, which serves somebody still, takes back some as well; each counts its own by
    generation.
    """

    def __init__(self, place: Place, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._place = place
        self._most: list[dict[str, int]] = [{} for _ in range(KEYS.shards)]  # by generation

    @property
    def by_shard(self) -> list[int]:
        return [sum(units.values()) for units in self._most]

    async def unread(self) -> list[int]:
        """Those that no flusher had read when Redis lost them, by shard: neither it nor the ledger has them now."""
        rows = await self._place.sql("select shard, generation, units from lost_leases")
        ledger = {(int(shard), str(generation)): int(units) for shard, generation, units in rows}
        async with redis.asyncio.Redis.from_url(self._place.redis.primary.url, socket_timeout=5) as client:
            kept = [_units(await client.hgetall(KEYS.reclaimed(shard))) for shard in range(KEYS.shards)]
        return [
            sum(max(0, n - max(kept[shard].get(name, 0), ledger.get((shard, name), 0))) for name, n in most.items())
            for shard, most in enumerate(self._most)
        ]

    async def run(self) -> None:
        pair = self._place.redis
        await asyncio.gather(self._watch(lambda: pair.primary), self._watch(lambda: pair.standby))

    async def _watch(self, which: Callable[[], EmbeddedRedis]) -> None:
        while True:
            server = which()
            try:
                async with redis.asyncio.Redis.from_url(server.url, socket_timeout=5) as client:
                    while which() is server:
                        await self._look(client)
                        await asyncio.sleep(POLL_S)
            except (RedisError, OSError, TimeoutError):
                await asyncio.sleep(POLL_S)

    async def _look(self, client: redis.asyncio.Redis) -> None:
        pipe = client.pipeline(transaction=False)
        for shard in range(KEYS.shards):
            pipe.hgetall(KEYS.reclaimed(shard))
        for shard, (most, found) in enumerate(zip(self._most, await pipe.execute(), strict=True)):
            for name, units in _units(found).items():
                if units > most.get(name, 0):
                    self._tell(f"  shard {shard}: {most.get(name, 0)} -> {units} units taken back in {name}")
                    most[name] = units


def _units(found: Mapping[Any, Any]) -> dict[str, int]:
    """Units by generation."""
    return {name.decode(): int(units) for name, units in found.items()}


async def in_ledger(place: Place) -> dict[str, int]:
    rows = await place.sql("select tenant, sum(amount)::bigint from usage_windows where scope = '' group by tenant")
    return {str(tenant): int(amount) for tenant, amount in rows}


async def at_stripe(place: Place) -> dict[str, int]:
    customers = {str(c): str(t) for t, c in await place.sql("select tenant, customer from billing_customers")}
    found: Counter[str] = Counter()
    for total in await asyncio.to_thread(place.stripe.totals):
        amount = int(total["total"])
        if amount:
            found[customers.get(total["customer"], total["customer"])] += amount
    return dict(found)


def checked(place: Place, clients: Sequence[Client]) -> dict[str, int]:
    """By tenant, how many checks may have counted: that were allowed, or whose answer nobody saw."""
    by_key = sum((proxy.may_count() for proxy in place.checks), Counter[str]())
    return {client.tenant: by_key[client.key] for client in clients}


async def lost_in_ledger(place: Place) -> list[int]:
    """What the ledger has of lost leases, in units by shard."""
    found = dict(await place.sql("select shard, sum(units)::bigint from lost_leases group by shard"))
    return [int(found.get(shard, 0)) for shard in range(KEYS.shards)]


async def units_lost(place: Place) -> int:
    """What the metric says of lost leases; every flusher tells the same."""
    told = [_UNITS_LOST.search(await place.programs[name].metrics()) for name in FLUSHERS]
    return max(int(float(found[1])) for found in told if found is not None)
