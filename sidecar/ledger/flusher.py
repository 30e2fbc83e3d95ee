"""The flusher: carries windows from Redis to the ledger, and projects tenants, keys and the catalogue to Redis.

A pass over a shard: read dirty windows -> merge them with max -> raise the epoch -> commit -> clear the marks of
windows that did not change meanwhile -> move the watermark. Several flushers share the shards by Postgres' advisory
locks.

Guarantees: a mark is cleared only after the commit; whatever is lost or repeated in between changes nothing.
Gives up:   order between shards.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from msgspec import Struct

from sidecar.errors import LedgerUnavailable, NotFound, SidecarError
from sidecar.ledger.distrust import distrust
from sidecar.ledger.epochs import UNSEEN, Epochs
from sidecar.ledger.folding import fold
from sidecar.ledger.projector import REVISIONS_LEFT_BEHIND, Projector
from sidecar.ledger.restore import catch_up, restore
from sidecar.ledger.shard import CounterRow, ShardState
from sidecar.logs import Transition, fields

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from sidecar.clock import Clock
    from sidecar.ledger.connection import Ledger
    from sidecar.ledger.shard import ShardTransaction
    from sidecar.store.client import Store
    from sidecar.store.messages import Collected, DirtyWindow, Glance
    from sidecar.telemetry import FlusherCounters

log = logging.getLogger(__name__)

WINDOWS_PER_PASS = 1_000
SHARDS_AT_ONCE = 4
PROJECT_INTERVAL_S = 0.2
PARTITIONS_INTERVAL_S = 3_600
FOLD_INTERVAL_S = 600
RETRY_S = 0.2
# An idle shard is looked at by script only so often: for writers that fell silent, and another server behind the name.
LOOK_MS = 30_000
WRITERS_REMEMBERED = 10_000


class FlushTerms(Struct, frozen=True):
    """Settings of the flusher; times in ms, ``hold`` is "full" or "reported"."""

    interval_ms: int
    reclaim_after_ms: int
    hold: str


class Flusher:
    """Passes over all shards, again and again. ``flush`` returns when everything counted before it is in the ledger."""

    def __init__(
        self, ledger: Ledger, store: Store, clock: Clock, counters: FlusherCounters, terms: FlushTerms
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._counters = counters
        self._terms = terms
        self._projector = Projector(store, clock)
        self._shards = store.keys.shards
        self._locks = [asyncio.Lock() for _ in range(self._shards)]
        self._epochs = Epochs(self._shards, clock)
        self._looked: list[tuple[int, Glance] | None] = [None] * self._shards
        self._opening = [0] * self._shards
        self._awaited: list[list[str]] = [[] for _ in range(self._shards)]
        self._seen: list[dict[str, int]] = [{} for _ in range(self._shards)]
        self._started_ms = clock.monotonic_ms()
        self._reclaimed: list[tuple[str, list[str | int]]] = [("", [])] * self._shards
        self._round = [0] * self._shards
        self._caught_up = [False] * self._shards
        self._backlog = [0] * self._shards
        self._restored: list[int] = []
        self._state = Transition(log, "flushing")
        self.cause = ""

    async def run(self) -> None:
        """Pass over all shards every interval, and project changes as they come."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._every(self._terms.interval_ms / 1000, self.pass_all))
            tasks.create_task(self._every(PROJECT_INTERVAL_S, self.project))
            tasks.create_task(self._every(PARTITIONS_INTERVAL_S, self._partitions))
            tasks.create_task(self._every(FOLD_INTERVAL_S, self.fold))

    async def flush(self) -> None:
        """Pass until everything that Redis had at the call is in the ledger. Raises what a pass raises."""
        await self.project()
        for shard in range(self._shards):
            wanted, _ = await self._store.marks(shard)
            while True:
                await self._pass(shard, full=True)
                version, watermark = await self._store.marks(shard)
                if watermark >= wanted or version < wanted:  # or Redis lost it, and the journals report it again
                    break
        failures = await self._at_once(self._epochs.unseen)
        self._tell_restored()
        if failures:
            raise failures[0]

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except SidecarError as error:
                self._failed(error)
            except Exception as error:  # whatever it is, the next round may work, and nothing else carries the counts
                if str(error) != self.cause:
                    log.exception("flushing failed unexpectedly")
                self._failed(error)
            await asyncio.sleep(interval_s)

    def _failed(self, error: Exception) -> None:
        self._counters.passes_failed += 1
        self.cause = str(error)
        self._state.bad(cause=self.cause)

    async def pass_all(self) -> None:
        began_ms = self._clock.monotonic_ms()
        failures = await self._at_once(range(self._shards))
        self._tell_restored()
        counters = self._counters
        counters.backlog_windows = sum(self._backlog)
        if failures:
            raise failures[0]
        counters.passes_good += 1
        now_ms = self._clock.monotonic_ms()
        counters.flush_us.observe((now_ms - began_ms) * 1000)
        counters.clean_ms = now_ms
        self.cause = ""
        self._state.good()

    async def _at_once(self, shards: Iterable[int], *, full: bool = False) -> list[BaseException]:
        """Pass over shards until there is no more to do, a few at a time; what failed does not stop the others."""
        limit = asyncio.Semaphore(SHARDS_AT_ONCE)

        async def one(shard: int) -> None:
            async with limit:
                while await self._pass(shard, full=full):
                    pass

        results = await asyncio.gather(*(one(shard) for shard in shards), return_exceptions=True)
        return [result for result in results if isinstance(result, BaseException)]

    async def project(self) -> None:
        """Give Redis the catalogue in force, and every tenant and key that changed."""
        async with self._ledger.transaction() as tx:
            # Announced before the commit that marks it as done: what was not announced is projected again.
            await self._store.announce(await self._projector.catalogue(tx))
            pending = [int(row[0]) for row in await tx.rows("shards_pending")]
            states = await tx.rows("shard_states")
            self._epochs.compare({row[0]: ShardState(*row[1:4]) for row in states})
            self._counters.lease_units_lost = sum(row[4] for row in states)
        failures = await self._at_once(pending, full=True)
        self._tell_restored()
        if failures:
            raise failures[0]

    def _tell_restored(self) -> None:
        """One line for all shards, since a Redis that lost its state lost that of every shard."""
        restored, self._restored = sorted(self._restored), []
        if restored:
            grants_at_ms = max(self._opening[shard] for shard in restored)
            log.warning("shards restored after lost state", extra=fields(shards=restored, grants_at_ms=grants_at_ms))

    def vouches(self, epochs: dict[int, int]) -> bool:
        """Whether a ledger with these epochs is as new as Redis knows it to be; see Epochs."""
        return self._epochs.vouches(epochs)

    async def fold(self) -> None:
        """Fold what counters of windows that are long over there are; see folding.fold."""
        await fold(self._ledger, self._locks, self._counters)

    async def _partitions(self) -> None:
        await self._ledger.ensure_partitions(self._clock.wall_s())

    async def _pass(self, shard: int, *, full: bool = False) -> bool:
        """One pass over a shard; returns whether there is more to do. ``full``: also when nothing seems dirty."""
        async with self._locks[shard]:
            if not full and self._epochs.seen[shard] != UNSEEN:
                marks = await self._store.glance(shard)
                self._epochs.hear(shard, marks.epoch)
                if self._still(shard, marks) or (marks.clean and await self._nothing_to_do(shard, marks)):
                    return False
            self._looked[shard] = None
            return await self._locked_pass(shard, full=full)

    async def _nothing_to_do(self, shard: int, marks: Glance) -> bool:
        """Look at a shard by script: whether it is as the last pass over it left it, with nobody silent."""
        glance = await self._store.collect(shard, self._epochs.seen[shard], 0, self._terms.reclaim_after_ms)
        self._epochs.hear(shard, glance.epoch)
        self._backlog[shard] = glance.dirty
        opening = self._terms.hold == "reported" and self._opening[shard] > glance.real_ms
        known = glance.state == "open" and glance.generation == self._epochs.generations[shard]
        reclaimed = (glance.generation, glance.reclaimed) != self._reclaimed[shard]
        if not known or reclaimed or glance.dirty or glance.silent or opening:
            return False
        self._looked[shard] = (self._clock.monotonic_ms(), marks)
        return True

    def _still(self, shard: int, marks: Glance) -> bool:
        """Whether nothing has changed since the last look by script, not long ago, which found nothing to do."""
        looked = self._looked[shard]
        if looked is None or looked[1] != marks:
            return False
        return self._clock.monotonic_ms() - looked[0] < min(LOOK_MS, self._terms.reclaim_after_ms // 2)

    async def _locked_pass(self, shard: int, *, full: bool) -> bool:
        store = self._store
        async with self._ledger.shard(shard) as tx:
            if tx is None:
                if full:
                    await asyncio.sleep(RETRY_S)
                return full
            state = await tx.state()
            collected = await store.collect(shard, state.epoch, WINDOWS_PER_PASS, self._terms.reclaim_after_ms)
            self._epochs.hear(shard, collected.epoch)
            if state.doubted or collected.epoch > state.epoch:
                await self._ledger_went_back(tx, state.epoch, collected.epoch)
                collected = await store.collect(shard, state.epoch, WINDOWS_PER_PASS, self._terms.reclaim_after_ms)
            if collected.generation != state.generation:
                await self._meet(tx, collected, first=not state.generation)
            epoch = await self._merge(tx, collected, state.epoch)
            # Announced before the commit that marks it as done: what was not announced is projected again.
            await store.announce(await self._projector.keys(tx))
            if self._epochs.generations[shard] != collected.generation:
                self._epochs.generations[shard] = collected.generation
                self._round[shard], self._caught_up[shard] = 0, False
            complete = len(collected.windows) >= collected.dirty
            caught_up = self._caught_up[shard] or complete
            version = collected.version if complete else self._round[shard]
            restored = caught_up and await self._project_shard(tx, collected, version)
            # Once for each data set, when it is the one that the ledger works with, and whenever there is more.
            known = restored or collected.generation == state.generation
            reclaimed = (collected.generation, collected.reclaimed)
            if known and reclaimed != self._reclaimed[shard]:
                await tx.rows("count_lost_leases", shard, collected.reclaimed[::2], collected.reclaimed[1::2])
        if known:
            self._reclaimed[shard] = reclaimed
        self._epochs.seen[shard] = epoch
        await self._settle(shard, collected, epoch, caught_up=caught_up)
        if restored and (collected.state == "held" or self._opening[shard] > collected.real_ms):
            await self._open(shard, collected, first=not state.generation)
        await self._retire_silent(shard, collected)
        self._backlog[shard] = max(0, collected.dirty - len(collected.windows))
        return not caught_up

    async def _settle(self, shard: int, collected: Collected, epoch: int, *, caught_up: bool) -> None:
        """Clear the marks, and see whether all that was dirty when the round began is in the ledger by now.

        Under steady traffic there is always something dirty; projecting only has to wait for a round.
        """
        if caught_up:
            self._caught_up[shard], self._round[shard] = False, 0
        if not collected.windows:
            return
        marks = [(w.tenant, w.series, w.period, w.hour, w.version) for w in collected.windows]
        watermark = await self._store.settle(shard, collected.generation, epoch, marks)
        if not caught_up:
            self._round[shard] = self._round[shard] or collected.version
            self._caught_up[shard] = watermark >= self._round[shard]

    async def _project_shard(self, tx: ShardTransaction, collected: Collected, version: int) -> bool:
        """Bring Redis up to what the ledger says, which has all window changes up to ``version``.

        Returns whether the shard may grant (again).
        """
        held = collected.state == "held"
        if held:
            counted = await restore(tx, self._store, collected)
            self._awaited[tx.shard] = self._lately_seen(tx.shard, counted)
            await self._store.announce(await self._projector.keys(tx))
        try:
            announced, complete = await self._projector.tenants(tx, collected, version)
        except NotFound:
            return False  # without a catalogue there are no plans yet: whatever is counted is kept, nothing is granted
        await self._store.announce(announced)
        if held and complete:
            await tx.set_generation(collected.generation)
        return complete

    async def _meet(self, tx: ShardTransaction, collected: Collected, *, first: bool) -> None:
        """Note that the ledger is filled from another data set from now on, and bring that one up to it.

        Whoever passes over the former one again then finds out that the ledger has what it lacks.
        """
        if not (first and collected.state == "held"):
            await tx.set_generation(collected.generation)
        if collected.state == "held":
            return  # its restore is yet to come
        await catch_up(tx, self._store, collected)
        log.warning("shard is projected anew", extra=fields(shard=tx.shard, generation=collected.generation))

    def _lately_seen(self, shard: int, counted: list[str]) -> list[str]:
        """Writers that must report before a hold may end early.

        Those this flusher saw within ``reclaim_after``; if it has not run for so long, all that counted lately.
        """
        since_ms = self._clock.monotonic_ms() - self._terms.reclaim_after_ms
        if self._started_ms > since_ms:
            return counted
        return [writer for writer, seen_ms in self._seen[shard].items() if seen_ms >= since_ms]

    def _note_seen(self, shard: int, collected: Collected) -> None:
        now_ms = self._clock.monotonic_ms()
        seen = self._seen[shard]
        seen.update((str(writer), now_ms) for window in collected.windows for writer in window.values[::2])
        if len(seen) > WRITERS_REMEMBERED:
            since_ms = now_ms - self._terms.reclaim_after_ms
            self._seen[shard] = {writer: seen_ms for writer, seen_ms in seen.items() if seen_ms >= since_ms}

    async def _merge(self, tx: ShardTransaction, collected: Collected, epoch: int) -> int:
        if not collected.windows and collected.epoch <= epoch:
            return epoch
        self._note_seen(tx.shard, collected)
        default_plan, anonymous_plan = await self._projector.newcomers(tx)
        self._counters.rows += await tx.merge(counter_rows(collected.windows), default_plan, anonymous_plan)
        # Windows too old to have moved `spent` themselves (with an hour to spare for one that just turned): the rebuild
        # that does it is owed from this very transaction on.
        aged = {window.tenant for window in collected.windows if window.hour <= collected.first_direct_hour}
        if aged:
            await tx.rows("owe_tenants", sorted(aged))
        return await tx.raise_epoch(collected.epoch)

    async def _open(self, shard: int, collected: Collected, *, first: bool) -> None:
        terms = self._terms
        self._opening[shard] = await self._store.open(
            shard,
            collected.generation,
            first=first,
            reclaim_after_ms=terms.reclaim_after_ms,
            hold=terms.hold,
            writers=self._awaited[shard],
        )
        if collected.state == "held" and not first:
            self._counters.restores += 1
            self._restored.append(shard)

    async def _retire_silent(self, shard: int, collected: Collected) -> None:
        for writer in collected.silent:
            while await self._store.retire(shard, writer, lost_after_ms=self._terms.reclaim_after_ms):
                pass

    async def _ledger_went_back(self, tx: ShardTransaction, ledger_epoch: int, redis_epoch: int) -> None:
        """Postgres was restored from a backup: whatever Redis still has is sent again, every tenant published anew."""
        shard = tx.shard
        self._projector.doubt()
        # It scans all keys, so before every other pass has to wait for this one.
        marked = await self._store.mark_all_dirty(shard)
        if await tx.doubt():
            self._epochs.doubt()
            if not await tx.rows("leave_revisions_behind", REVISIONS_LEFT_BEHIND):
                raise LedgerUnavailable("another pass is about to leave revisions behind; this one is made again")
        # What was published before the restore may still be on its way: it is older than this.
        await tx.rows("renew_tenants", shard)
        await tx.rows("forget_keys_projected", shard)
        await distrust(tx, shard=shard)
        log.error(
            "the ledger is older than Redis; every window is sent again",
            extra=fields(shard=shard, ledger_epoch=ledger_epoch, redis_epoch=redis_epoch, windows=marked),
        )


def counter_rows(windows: Sequence[DirtyWindow]) -> list[CounterRow]:
    """Rows of the ledger for windows as Redis has them; a series is ``metric`` or ``metric@scope``."""
    rows = []
    for window in windows:
        metric, _, scope = window.series.partition("@")
        values = window.values
        rows += [
            CounterRow(window.tenant, metric, scope, window.period, window.hour, str(writer), int(amount))
            for writer, amount in zip(values[::2], values[1::2], strict=True)
        ]
    return rows
