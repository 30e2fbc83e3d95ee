"""Adopts journals of dead writers: reports their windows, then their death, and deletes a file when the ledger has it.

Guarantees: the old writer's id is never continued; its leases are freed after its windows are reported; a file goes
            only when the ledger, not Redis, has all of it, in the generation in which it was reported.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sidecar.errors import StoreRefused, StoreUnavailable
from sidecar.logs import fields
from sidecar.store.messages import SyncMessage, TenantReport
from sidecar.usage.recovery import DeadJournal, adopt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sidecar.store.client import Store
    from sidecar.store.messages import SyncReply
    from sidecar.telemetry import CoreCounters
    from sidecar.usage.recovery import CountedWindow

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

SCAN_INTERVAL_S = 2.0
POLL_INTERVAL_S = 0.5
# One script call has to end well within the store's timeout.
WINDOWS_PER_MESSAGE = 250


class Adoption:
    """Looks for journals without a process in one state directory, as long as the worker lives."""

    def __init__(self, directory: Path, store: Store, counters: CoreCounters, reclaim_after_ms: int) -> None:
        self._directory = directory
        self._store = store
        self._counters = counters
        self._reclaim_after_ms = reclaim_after_ms
        self._held: list[DeadJournal] = []

    async def run(self) -> None:
        """Adopt what is there, and what dying siblings leave."""
        while True:
            self._held += adopt(self._directory)
            while self._held:
                await self._finish(self._held[0])
                self._held.pop(0)
            await asyncio.sleep(SCAN_INTERVAL_S)

    def close(self) -> None:
        """Let others adopt what is not finished."""
        for journal in self._held:
            journal.release()
        self._held.clear()

    async def _finish(self, journal: DeadJournal) -> None:
        log.info("journal adopted", extra=fields(writer=journal.writer, windows=len(journal.windows)))
        shards: dict[int, dict[str, list[CountedWindow]]] = {}
        for window in journal.windows:
            shard = self._store.keys.shard_of(window.key.tenant)
            shards.setdefault(shard, {}).setdefault(window.key.tenant, []).append(window)
        reported = {
            shard: await self._insist(self._report, shard, journal.writer, tenants) for shard, tenants in shards.items()
        }
        for shard in range(self._store.keys.shards):
            while await self._insist(self._store.retire, shard, journal.writer):
                pass
        for shard, (generation, version) in reported.items():
            await self._await_ledger(shard, journal.writer, shards[shard], generation, version)
        journal.delete()
        self._counters.journals_adopted += 1
        log.info("journal is in the ledger", extra=fields(writer=journal.writer))

    async def _await_ledger(
        self, shard: int, writer: str, tenants: dict[str, list[CountedWindow]], generation: str, version: int
    ) -> None:
        while True:
            reply: SyncReply = await self._insist(self._send, shard, writer, [])
            if reply.generation != generation:
                generation, version = await self._insist(self._report, shard, writer, tenants)
            elif reply.watermark >= version:
                return
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _report(self, shard: int, writer: str, tenants: dict[str, list[CountedWindow]]) -> tuple[str, int]:
        """Report all windows of a shard; returns the generation and the version after which the ledger has them."""
        revisions: dict[str, int] = {}
        waiting = [
            (tenant, windows[first : first + WINDOWS_PER_MESSAGE])
            for tenant, windows in tenants.items()
            for first in range(0, len(windows), WINDOWS_PER_MESSAGE)
        ]
        generation, version = "", 0
        while waiting:
            batch, waiting = _fitting(waiting)
            parts = [
                TenantReport(tenant, revisions.get(tenant, 0), [(*w.key[1:], w.value) for w in windows], [])
                for tenant, windows in batch
            ]
            reply = await self._send(shard, writer, parts)
            if generation and reply.generation != generation:
                raise StoreUnavailable("Redis lost its state during the report")
            generation, version = reply.generation, reply.version
            refused = []
            for (tenant, windows), part in zip(batch, reply.parts, strict=True):
                if part.revision > revisions.get(tenant, 0):
                    revisions[tenant] = part.revision
                    refused.append((tenant, windows))
            waiting = refused + waiting
        return generation, version

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


Slice = tuple[str, "list[CountedWindow]"]


def _fitting(waiting: list[Slice]) -> tuple[list[Slice], list[Slice]]:
    """Split what is waiting into one message's worth and the rest."""
    room = WINDOWS_PER_MESSAGE
    for position, (_, windows) in enumerate(waiting):
        room -= len(windows)
        if room < 0:
            return waiting[:position], waiting[position:]
    return waiting, []
