"""The numbers of a chaos run, each read where it is kept: Postgres, Stripe, Redis, Envoy, and the programs' metrics."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence

import asyncpg
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

    In a split brain the old primary, which serves somebody still, takes back some as well. ``unread``: those that the
    ledger did not have yet when Redis lost them, by shard.
    """

    def __init__(self, place: Place, tell: Callable[[str], None]) -> None:
        self.by_shard = [0] * KEYS.shards
        self.unread = [0] * KEYS.shards
        self._asking: set[asyncio.Task[None]] = set()
        self._tell = tell
        self._place = place
        self._latest = [0] * KEYS.shards  # what a primary told last
        self._told: dict[int, list[int]] = {}  # what each server told last while it was one, by port

    async def run(self) -> None:
        pair = self._place.redis
        await asyncio.gather(self._watch(lambda: pair.primary), self._watch(lambda: pair.standby))

    async def _watch(self, which: Callable[[], EmbeddedRedis]) -> None:
        while True:
            server = which()
            try:
                async with redis.asyncio.Redis.from_url(server.url, socket_timeout=5) as client:
                    while which() is server:
                        await self._look(client, server)
                        await asyncio.sleep(POLL_S)
            except (RedisError, OSError, TimeoutError):
                await asyncio.sleep(POLL_S)

    async def _look(self, client: redis.asyncio.Redis, server: EmbeddedRedis) -> None:
        pipe = client.pipeline(transaction=False)
        pipe.execute_command("ROLE")
        for shard in range(KEYS.shards):
            pipe.hget(KEYS.epoch(shard), "reclaimed")
        role, *values = await pipe.execute()
        if role[0] != b"master":
            self._told.pop(server.port, None)  # it tells what its primary does
            return
        found = [int(value or 0) for value in values]
        before = self._told.get(server.port, self._latest)
        self._told[server.port] = found
        # A smaller number is that of an older copy, or of none: it tells of nothing new.
        for shard, (now, last) in enumerate(zip(found, before, strict=True)):
            if now != last:
                self._tell(f"  shard {shard}: {last} -> {now} units taken back")
            self.by_shard[shard] += max(0, now - last)
        if server is not self._place.redis.primary:
            return
        self._latest = found
        lost = [shard for shard in range(KEYS.shards) if found[shard] < before[shard]]
        if lost:
            asking = asyncio.create_task(self._ask_ledger(lost))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)

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
