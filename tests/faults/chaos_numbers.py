"""The numbers of a chaos run, each read where it is kept: Postgres, Stripe, Redis, Envoy, and the programs' metrics."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence

import asyncpg
import redis.asyncio
from redis.exceptions import RedisError

from sidecar.store.keys import Keyspace
from tests.faults.chaos_place import FLUSHERS, Client, Place

POLL_S = 0.05
KEYS = Keyspace()
_UNITS_LOST = re.compile(r"^sidecar_lease_units_lost_total (\S+)$", re.MULTILINE)


class TakenBack:
    """Watches how many lease units Redis takes back from silent writers, by shard, over wipes and failovers.

    ``unread``: those that the ledger did not have yet when Redis lost them, by shard.
    """

    def __init__(self, place: Place, tell: Callable[[str], None]) -> None:
        self.by_shard = [0] * KEYS.shards
        self.unread = [0] * KEYS.shards
        self._asking: set[asyncio.Task[None]] = set()
        self._tell = tell
        self._place = place
        self._last = [0] * KEYS.shards

    async def run(self) -> None:
        while True:
            try:
                async with redis.asyncio.Redis.from_url(self._place.redis.primary.url, socket_timeout=5) as client:
                    await self._watch(client, self._place.redis.primary.port)
            except (RedisError, OSError, TimeoutError):
                await asyncio.sleep(POLL_S)

    async def _watch(self, client: redis.asyncio.Redis, port: int) -> None:
        while self._place.redis.primary.port == port:
            pipe = client.pipeline(transaction=False)
            for shard in range(KEYS.shards):
                pipe.hget(KEYS.epoch(shard), "reclaimed")
            found = [int(value or 0) for value in await pipe.execute()]
            # A smaller number is that of an older copy, or of none: it tells of nothing new.
            for shard, (now, last) in enumerate(zip(found, self._last, strict=True)):
                if now != last:
                    self._tell(f"  shard {shard}: {last} -> {now} units taken back")
                self.by_shard[shard] += max(0, now - last)
            lost = [shard for shard in range(KEYS.shards) if found[shard] < self._last[shard]]
            self._last = found
            if lost:
                asking = asyncio.create_task(self._ask_ledger(lost))
                self._asking.add(asking)
                asking.add_done_callback(self._asking.discard)
            await asyncio.sleep(POLL_S)

    async def _ask_ledger(self, shards: list[int]) -> None:
        """Note how far it is behind for good: what comes later it reads later."""
        while True:
            try:
                counted = dict(await self._place.sql("select shard, lease_units_lost from shards"))
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                await asyncio.sleep(POLL_S)
                continue
            for shard in shards:
                self.unread[shard] = self.by_shard[shard] - counted.get(shard, 0)
            return


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
    found = dict(await place.sql("select shard, lease_units_lost from shards"))
    return [int(found.get(shard, 0)) for shard in range(KEYS.shards)]


async def units_lost(place: Place) -> int:
    """What the metric says of lost leases; every flusher tells the same."""
    told = [_UNITS_LOST.search(await place.programs[name].metrics()) for name in FLUSHERS]
    return max(int(float(found[1])) for found in told if found is not None)
