"""The enforcement core of one worker: journal, exchanges, directory, enforcer, and the loops that serve them.

Guarantees: a clean stop reports everything, returns the leases, waits (bounded) for the ledger and deletes the journal;
            any other end leaves a journal that the next worker on this disk adopts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from typing import TYPE_CHECKING

from sidecar.enforcement.adoption import Adoption
from sidecar.enforcement.changes import ChangeReader
from sidecar.enforcement.directory import Directory
from sidecar.enforcement.enforcer import Enforcer
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.repeats import Repeats
from sidecar.enforcement.survey import Survey
from sidecar.enforcement.synchroniser import Synchroniser
from sidecar.enforcement.terms import Terms
from sidecar.errors import StoreRefused, StoreUnavailable
from sidecar.logs import Transition, fields
from sidecar.signals import end
from sidecar.usage.journal import SUFFIX, Journal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.clock import Clock
    from sidecar.settings import Settings
    from sidecar.store.client import Store
    from sidecar.telemetry import CoreCounters

log = logging.getLogger(__name__)

WATERMARK_POLL_S = 0.2
WATCH_INTERVAL_S = 1.0
LOOP_AGAIN_S = 1.0
RETIRE_AGAIN_S = 0.05
MOVED_AT_ONCE = 64  # windows


class Core:
    """One worker's enforcement. Use ``start``, ``enforcer``, ``flush`` and ``stop``, in that order."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, counters: CoreCounters) -> None:
        self.writer = secrets.token_hex(8)
        folder = settings.state / "journals"
        self.journal = Journal(folder / f"{self.writer}{SUFFIX}", self.writer)
        terms = Terms(
            settings.lease_ttl_ms,
            settings.reclaim_after_ms,
            settings.lease_seconds,
            settings.lease_units_max,
            settings.lease_rest_ms,
        )
        self.exchanges = [ShardExchange(shard, self.writer, self.journal, terms) for shard in range(store.keys.shards)]
        self.directory = Directory(
            self.exchanges,
            store,
            clock,
            counters,
            tenants_max=settings.tenants_cached_max,
            keys_max=settings.keys_cached_max,
        )
        self.synchroniser = Synchroniser(
            self.exchanges,
            store,
            clock,
            counters,
            interval_ms=settings.sync_interval_ms,
            renew=self.directory.renew,
        )
        self.enforcer = Enforcer(
            self.directory, self.synchroniser, store, clock, counters, Repeats(settings.request_repeat_s * 1000)
        )
        self.changes = ChangeReader(
            self.directory,
            store,
            counters,
            interval_ms=settings.changes_interval_ms,
            kept_at=settings.state / "catalogue.json",
        )
        self._survey = Survey(self.exchanges, counters)
        self._adoption = Adoption(folder, store, counters, settings.reclaim_after_ms)
        self._store = store
        self._clock = clock
        self._counters = counters
        self.fault: Exception | None = None  # the last one that ended a loop
        self._tasks: list[asyncio.Task[None]] = []
        self._journal_state = Transition(log, "the journal")
        self._store_state = Transition(log, "the store")

    async def start(self) -> None:
        """Wait for a catalogue, then run the loops."""
        await self.changes.first_policy()
        loops = (self.directory.run, self.synchroniser.run, self.changes.run, self._adoption.run, self._watch)
        self._tasks = [asyncio.create_task(self._for_good(loop), name=loop.__qualname__) for loop in loops]

    async def flush(self) -> None:
        """Hear what was announced and report everything counted so far; StoreUnavailable when Redis does not answer."""
        await self.changes.catch_up()
        for exchange in self.exchanges:
            for _ in range(exchange.rounds):
                if not await self.synchroniser.join(exchange):
                    raise StoreUnavailable("Redis did not answer; what was counted waits in the journal")

    async def observe(self) -> None:
        """Set what is looked up rather than counted, for a scrape that is about to read it."""
        counters, journal, store = self._counters, self.journal, self._store
        await self._survey.look()
        counters.generation_changes = sum(exchange.generation_changes for exchange in self.exchanges)
        counters.syncs_superseded = sum(exchange.replies_unused for exchange in self.exchanges)
        counters.journal_lag_windows = sum(len(exchange.kept) for exchange in self.exchanges)
        counters.journal_cells = journal.cells
        counters.journal_bytes = journal.size_bytes
        counters.journal_writable = int(journal.durable)
        counters.snapshots_cached = len(self.directory.accounts)
        counters.keys_cached = len(self.directory.keys)
        counters.strangers_refused = self.directory.strangers_refused
        counters.breaker_open = int(not store.available)
        counters.breaker_opened = store.breaker_opened
        counters.store_calls = store.calls
        counters.store_errors = store.errors

    async def stop(self, drain_s: float) -> None:
        """Report everything, return the leases, wait at most ``drain_s`` for the ledger, delete the journal."""
        # The directory goes on: a report may still be refused because a snapshot is old.
        await end(self._tasks[1:])
        await self._survey.close()
        self._adoption.close()
        done = False
        with contextlib.suppress(TimeoutError, StoreUnavailable, StoreRefused):
            async with asyncio.timeout(drain_s):
                done = await self._drain()
        await end(self._tasks[:1])
        await self.synchroniser.close()
        # A request that waited meanwhile may have been counted since: its journal is left to a successor.
        done = done and all(exchange.in_ledger for exchange in self.exchanges)
        log.info("worker stopped", extra=fields(writer=self.writer, in_ledger=done))
        self.journal.close(delete=done)

    async def abandon(self) -> None:
        """End as a killed process does: nothing is reported, the journal stays and its lock goes."""
        await end(self._tasks)
        await self._survey.close()
        self._adoption.close()
        await self.synchroniser.close()
        self.journal.close(delete=False)

    async def _drain(self) -> bool:
        for exchange in self.exchanges:
            exchange.return_leases()
        told = False
        while not told:
            if not await self.synchroniser.drain():
                return False
            told = await self._retire()
        while any(not exchange.in_ledger for exchange in self.exchanges):
            await asyncio.sleep(WATERMARK_POLL_S)
            await self.synchroniser.poll()
        return True

    async def _retire(self) -> bool:
        """Free the leases; False when a shard has lost its state meanwhile, and with it what was told."""
        for exchange in self.exchanges:
            while left := await self._store.retire(exchange.shard, self.writer, generation=exchange.generation):
                if left < 0:
                    if not await self.synchroniser.join(exchange):  # which learns of it, if it is answered
                        await asyncio.sleep(RETIRE_AGAIN_S)
                    return False
        return True

    async def _for_good(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop, which ends only by cancellation. Whatever else ends it is a fault of ours: seen, survived."""
        while True:
            try:
                await loop()
            except Exception as error:
                self.fault = error
                self._counters.loop_failures += 1
                log.critical("a loop of the core failed", exc_info=error, extra=fields(loop=loop.__qualname__))
            await asyncio.sleep(LOOP_AGAIN_S)

    async def _watch(self) -> None:
        """Log transitions of the journal and the store."""
        journal, store = self.journal, self._store
        while True:
            if journal.regain():
                await self._move()
            (self._journal_state.good if journal.durable else self._journal_state.bad)(cause=journal.cause)
            (self._store_state.good if store.available else self._store_state.bad)()
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _move(self) -> None:
        """Bring to the file what was counted in memory while it had no room."""
        for number, _ in enumerate(itertools.chain.from_iterable(exchange.kept.moved() for exchange in self.exchanges)):
            if number % MOVED_AT_ONCE == 0:
                await asyncio.sleep(0)  # a decision may come between
