"""Drives the exchanges of all shards, one call a shard at a time.

A shard is synced at once when somebody waits or a lease runs low, else every ``interval_ms``. A writer that decides
more than BUSY_PER_S requests a second says the same in fewer, larger messages: shards in which no limit is near its end
are then synced every SPACED_INTERVALS only, with leases to match.

Guarantees: waiters for one shard share the first call sent after they joined; a failed call loses nothing.
Gives up:   a sync while the breaker is open, but for the probe it lets through.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.errors import StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.clock import Clock
    from sidecar.enforcement.account import Account
    from sidecar.enforcement.exchange import ShardExchange
    from sidecar.enforcement.sent import Sent
    from sidecar.store.client import Store
    from sidecar.telemetry import CoreCounters

REFRESH_PAUSE_S = 0.02
TENANTS_AT_ONCE = 5  # of a message or its answer: a tenth of a millisecond or two; then decisions come between
# Messages that are composed beside each other hold up decisions together. So shards begin one after the other.
APART_S = 0.005
# Those that have nothing to tell begin a few at once, as rarely: an idle process pays most for waking up.
TOGETHER = 4
WATERMARK_POLL_MS = 5_000
# How soon a shard of which leases are at rest hears that somebody calls for them.
RESTING_POLL_MS = 2_000
HOUR_MS = 3_600_000
# With a connection a shard for each, a thousand workers would be more than Redis takes (docs/scale.md).
PARTS = 4
BUSY_PER_S = 4_000
SPACED_INTERVALS = 5


class Synchroniser:
    """Runs syncs of one writer. ``renew`` gets accounts whose snapshot is older than Redis', and that one, if it came.

    ``floor_ms``: the earliest wall time for which windows may still be opened; before it they may have been freed.
    """

    def __init__(
        self,
        exchanges: Sequence[ShardExchange],
        store: Store,
        clock: Clock,
        counters: CoreCounters,
        *,
        interval_ms: int,
        renew: Callable[[Account, bytes], None],
    ) -> None:
        self._exchanges = exchanges
        self._parts = [exchanges[part::PARTS] for part in range(PARTS)]
        self._store = store
        self._clock = clock
        self._counters = counters
        self._interval_ms = interval_ms
        self._renew = renew
        self.floor_ms = 0
        self._waiting: list[list[asyncio.Future[bool]]] = [[] for _ in exchanges]
        self._again = [False] * len(exchanges)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._last_ms = [0] * len(exchanges)

    def request(self, exchange: ShardExchange) -> None:
        """Sync a shard now, or once more right after the call in flight."""
        self._again[exchange.shard] = True
        self.start(exchange)

    def join(self, exchange: ShardExchange) -> asyncio.Future[bool]:
        """Wait for the first call sent from now on; the result tells whether Redis answered."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[exchange.shard].append(waiter)
        self.start(exchange)
        return waiter

    async def run(self) -> None:
        """Sync changed shards every interval, and idle ones now and then for the ledger's watermark."""
        interval_s = self._interval_ms / 1000
        pause_s = part_s = interval_s / PARTS
        decided = self._counters.snapshot_hits
        while True:
            before, decided = decided, self._counters.snapshot_hits
            busy = decided - before > BUSY_PER_S * interval_s
            for part in range(PARTS):
                if not self._parts[part]:  # of fewer shards than parts
                    pause_s += part_s
                    continue
                await asyncio.sleep(pause_s)
                due = self.due(part, busy=busy)
                apart_s = min(APART_S, part_s / max(1, len(due)))
                pause_s, owed_s = part_s - apart_s * max(0, len(due) - 1), 0.0
                for position, exchange in enumerate(due):
                    owed_s += apart_s if position else 0.0
                    if owed_s and (exchange.pressing or position % TOGETHER == 0):
                        await asyncio.sleep(owed_s)
                        owed_s = 0.0
                    self.start(exchange)
                pause_s += owed_s

    def due(self, part: int, *, busy: bool = False) -> list[ShardExchange]:
        """Shards to be synced now, of one of PARTS parts: all at once would take a connection for each of them."""
        now_ms = self._clock.monotonic_ms()
        hour = self._clock.wall_s() // 3600
        # Half an interval less, since a tick may come a little early.
        spaced_ms = self._interval_ms * SPACED_INTERVALS - self._interval_ms // 2
        found = []
        for exchange in self._parts[part]:
            exchange.hour = hour
            exchange.spaced = busy and exchange.ample
            since_ms = now_ms - self._last_ms[exchange.shard]
            pressing = exchange.pressing and (not exchange.spaced or since_ms >= spaced_ms)
            poll_ms = RESTING_POLL_MS if exchange.resting else WATERMARK_POLL_MS
            if pressing or (exchange.busy and since_ms >= poll_ms):
                found.append(exchange)
        return found

    async def drain(self) -> bool:
        """Report everything there is; returns whether Redis has it all.

        In the moment in which it has, no lease is held, and none is taken any more: what a call in flight may bring is
        freed in Redis when the writer retires. Shards that have told everything are synced on while others have not:
        one that lost its state meanwhile has to be told again before it grants.
        """
        while pressing := [exchange for exchange in self._exchanges if exchange.pressing]:
            for exchange in pressing:
                for _ in range(exchange.rounds):
                    if not await self.join(exchange):
                        return False
            if any(exchange.pressing for exchange in pressing):  # a snapshot has to be read again first
                await asyncio.sleep(REFRESH_PAUSE_S)
            before_ms = self._clock.monotonic_ms() - RESTING_POLL_MS
            for exchange in self._exchanges:
                if exchange.kept and self._last_ms[exchange.shard] < before_ms and not await self.join(exchange):
                    return False
        for exchange in self._exchanges:
            exchange.ended = True
        return True

    async def poll(self) -> None:
        """One sync of every shard that keeps windows, for the ledger's watermark."""
        await asyncio.gather(*(self.join(exchange) for exchange in self._exchanges if exchange.kept))

    async def close(self) -> None:
        """Wait for the calls in flight."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def start(self, exchange: ShardExchange) -> None:
        """Sync a shard now, unless that is being done."""
        if exchange.shard not in self._tasks:
            self._tasks[exchange.shard] = asyncio.get_running_loop().create_task(self._exchange(exchange))

    async def _exchange(self, exchange: ShardExchange) -> None:
        shard = exchange.shard
        try:
            while True:
                self._again[shard] = False
                waiters, self._waiting[shard] = self._waiting[shard], []
                answered = False
                try:
                    answered = await self._call(exchange)
                finally:
                    for waiter in waiters:
                        if not waiter.done():
                            waiter.set_result(answered)
                again = self._again[shard] or (exchange.backlogged and not exchange.ended)
                if not self._waiting[shard] and not (answered and again):
                    return
        finally:
            del self._tasks[shard]

    async def _call(self, exchange: ShardExchange) -> bool:
        sent_ms = self._clock.monotonic_ms()
        self._last_ms[exchange.shard] = sent_ms
        if not self._store.callable(exchange.shard):  # then nothing need be said and taken back for it
            self._counters.syncs_failed += 1
            return False
        exchange.wall_s = self._clock.wall_s()
        sent: list[Sent] = []
        for one in exchange.reports(sent_ms):
            sent.append(one)
            if len(sent) % TENANTS_AT_ONCE == 0:
                await asyncio.sleep(0)
                if self._waiting[exchange.shard]:
                    break  # what they need is in the call that they wait for, and it follows at once
        message = exchange.message(sent, sent_ms)
        counters = self._counters
        try:
            reply = await self._store.sync(exchange.shard, message, exchange.terms.reclaim_after_ms)
        except (StoreUnavailable, StoreRefused):
            counters.syncs_failed += 1
            exchange.undo(sent)
            return False
        now_ms = self._clock.monotonic_ms()
        for number, _ in enumerate(exchange.applied(message, sent, reply, sent_ms, now_ms), 1):
            if number % TENANTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        self.floor_ms = max(self.floor_ms, (exchange.kept.freed_hour + 1) * HOUR_MS)
        counters.syncs_good += 1
        counters.last_sync_ms = now_ms
        counters.sync_us.observe((now_ms - sent_ms) * 1000)
        stale, exchange.stale = exchange.stale, []
        for account, document in stale:
            self._renew(account, document)
        return True
