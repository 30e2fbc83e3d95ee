"""Adopts journals of dead writers: reports their windows, then their death, and deletes a file when the ledger has it.

Guarantees: the old writer's id is never continued; its leases are freed after its windows are reported; a file goes
            only when the ledger, not Redis, has all of it, in the generation in which it was reported. A journal of any
            size takes no memory to speak of, and decisions wait a few milliseconds at most.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sidecar.errors import JournalUnusable, StoreRefused, StoreUnavailable
from sidecar.logs import Transition, fields
from sidecar.store.messages import SyncMessage, TenantReport
from sidecar.usage.recovery import WINDOWS_AT_ONCE, adopt_slowly

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from pathlib import Path

    from sidecar.store.client import Store
    from sidecar.store.messages import SyncReply
    from sidecar.telemetry import CoreCounters
    from sidecar.usage.recovery import CountedWindow, DeadJournal

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

SCAN_INTERVAL_S = 2.0
POLL_INTERVAL_S = 0.5
# One script call has to end well within the store's timeout.
WINDOWS_PER_MESSAGE = 250
# Of tenants; one that is forgotten is refused once more and sent again.
REVISIONS_MAX = 10_000

# The generation in which a shard's windows were reported, and the version after which the ledger has them.
Mark = tuple[str, int]


class _Pass:
    """What reporting a journal came to: the mark of each shard, and the revisions of tenants that Redis told."""

    def __init__(self) -> None:
        self.marks: dict[int, Mark] = {}
        self.revisions: dict[str, int] = {}


class Adoption:
    """Looks for journals without a process in one state directory, as long as the worker lives."""

    def __init__(self, directory: Path, store: Store, counters: CoreCounters, reclaim_after_ms: int) -> None:
        self._directory = directory
        self._store = store
        self._counters = counters
        self._reclaim_after_ms = reclaim_after_ms
        self._scan: Generator[DeadJournal | None] | None = None
        self._held: DeadJournal | None = None

    async def run(self) -> None:
        """Adopt what is there, and what dying siblings leave."""
        folder = Transition(log, "the folder of journals")
        while True:
            try:
                await self._adopt()
            except OSError as error:  # no descriptor is free, or its disk fails
                folder.bad(cause=str(error))
            else:
                folder.good()
            await asyncio.sleep(SCAN_INTERVAL_S)

    def close(self) -> None:
        """Let others adopt what is not finished."""
        if self._scan is not None:
            self._scan.close()
        if self._held is not None:
            self._held.release()
            self._held = None

    async def _adopt(self) -> None:
        """Adopt what is there now; OSError when the folder cannot be read."""
        self._scan = adopt_slowly(self._directory)
        for journal in self._scan:
            if journal is None:
                await asyncio.sleep(0)
                continue
            self._held = journal
            try:
                await self._finish(journal)
            except (OSError, JournalUnusable) as error:
                log.warning("journal cannot be read", extra=fields(writer=journal.writer, cause=str(error)))
                journal.release()
            self._held = None

    async def _finish(self, journal: DeadJournal) -> None:
        log.info("journal adopted", extra=fields(writer=journal.writer, windows=journal.count))
        marks = await self._report(journal)
        for shard in range(self._store.keys.shards):
            while left := await self._retire(journal, shard, marks.get(shard)):
                if left < 0:  # Redis lost its state meanwhile, and with it what was reported
                    marks |= await self._report(journal, shard)
        for shard, mark in marks.items():
            await self._await_ledger(journal, shard, mark)
        journal.delete()
        self._counters.journals_adopted += 1
        log.info("journal is in the ledger", extra=fields(writer=journal.writer))

    async def _retire(self, journal: DeadJournal, shard: int, mark: Mark | None) -> int:
        generation = mark[0] if mark is not None else ""
        return await self._insist(self._store.retire, shard, journal.writer, generation=generation)

    async def _await_ledger(self, journal: DeadJournal, shard: int, mark: Mark) -> None:
        while True:
            reply: SyncReply = await self._insist(self._send, shard, journal.writer, [])
            generation, version = mark
            if reply.generation != generation:
                mark = (await self._report(journal, shard))[shard]
            elif reply.watermark >= version:
                return
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _report(self, journal: DeadJournal, shard: int | None = None) -> dict[int, Mark]:
        """Report all windows, or those of one shard, each shard's in one generation; returns what it came to."""
        while True:
            passed = _Pass()
            if await self._pass(journal, shard, passed):
                return passed.marks
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _pass(self, journal: DeadJournal, only: int | None, passed: _Pass) -> bool:
        """Report once; False when Redis lost its state meanwhile, and with it what was reported first."""
        filling: dict[int, list[CountedWindow]] = {}
        for number, window in enumerate(journal.windows(), 1):
            if number % WINDOWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            shard = self._store.keys.shard_of(window.key.tenant)
            if only not in (None, shard):
                continue
            batch = filling.setdefault(shard, [])
            batch.append(window)
            if len(batch) == WINDOWS_PER_MESSAGE:
                del filling[shard]
                if not await self._deliver(journal.writer, shard, batch, passed):
                    return False
        for shard, batch in filling.items():
            if not await self._deliver(journal.writer, shard, batch, passed):
                return False
        return True

    async def _deliver(self, writer: str, shard: int, batch: list[CountedWindow], passed: _Pass) -> bool:
        """Report windows of a shard until Redis has taken them all; False when it is in another generation now."""
        waiting: dict[str, list[CountedWindow]] = {}
        for window in batch:
            waiting.setdefault(window.key.tenant, []).append(window)
        revisions = passed.revisions
        if len(revisions) > REVISIONS_MAX:
            revisions.clear()
        while waiting:
            parts = [
                TenantReport(tenant, revisions.get(tenant, 0), [(*w.key[1:], w.value) for w in windows], [])
                for tenant, windows in waiting.items()
            ]
            reply: SyncReply = await self._insist(self._send, shard, writer, parts)
            if passed.marks.get(shard, (reply.generation, 0))[0] != reply.generation:
                return False
            passed.marks[shard] = (reply.generation, reply.version)
            refused = {}
            for (tenant, windows), part in zip(waiting.items(), reply.parts, strict=True):
                if part.revision > revisions.get(tenant, 0):
                    revisions[tenant] = part.revision
                    refused[tenant] = windows
            waiting = refused
        return True

    async def _send(self, shard: int, writer: str, parts: list[TenantReport]) -> SyncReply:
        # Sequence 0 is never newer than a stored one: the message moves windows and is no sign of life.
        return await self._store.sync(shard, SyncMessage(writer, 0, "", 0, parts), self._reclaim_after_ms)

    async def _insist(self, call: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Repeat a call until Redis answers; every message here may be repeated."""
        while True:
            try:
                return await call(*args, **kwargs)
            except (StoreUnavailable, StoreRefused):
                await asyncio.sleep(POLL_INTERVAL_S)
