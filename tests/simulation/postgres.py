"""The ledger in memory: the named queries that a flusher's pass uses, with transactions.

Guarantees: a transaction takes effect as a whole or not at all; a shard's lock is held until its end. ``watch`` is told
            of every commit, so that nothing counted can decrease unseen (C2).
Gives up:   isolation between transactions beyond the shard's lock, which is all that the flusher relies on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any
from zlib import crc32

from sidecar.errors import LedgerUnavailable
from sidecar.ledger.shard import ShardTransaction
from tests.simulation.scheduler import Process
from tests.simulation.tables import CounterKey, Tables

FOLDED_AFTER_HOURS = 72  # fold_horizon()


class Postgres:
    """One server: its tables, who holds which shard, and whether it answers."""

    def __init__(self, shards: int, clock: Callable[[], int]) -> None:
        self.shards = shards
        self.clock = clock
        self.up = True
        self.life = 0
        self._written = 0  # catalogues, those of before a restore included
        self.tables = Tables()
        self.unknown: set[str] = set()
        self.locks: dict[int, MemoryTransaction] = {}
        self.doubting: MemoryTransaction | None = None
        self.open: list[MemoryTransaction] = []
        self.watch: Callable[[CounterKey, int, int], None] = lambda _key, _before, _after: None

    def stop(self) -> None:
        """Go down: what was not committed is gone."""
        self.up = False
        self.life += 1
        for transaction in list(self.open):
            transaction.roll_back()

    def forget(self, process: Process) -> None:
        """A client died: its connections close."""
        for transaction in [one for one in self.open if one.process is process]:
            transaction.roll_back()

    def backup(self) -> Tables | None:
        """What a backup would hold; None while something is uncommitted."""
        return None if self.open else self.tables.copy()

    def restore(self, backup: Tables) -> None:
        self.tables = backup.copy()

    def next_revision(self) -> int:
        self.tables.revision += 1
        return self.tables.revision

    def put_tenant(self, tenant: str, **columns: Any) -> None:
        row = self.tables.tenants.setdefault(
            tenant, {"plan": "", "parent": "", "projected": 0, "shard": crc32(tenant.encode()) % self.shards}
        )
        row.update(columns, rev=self.next_revision())

    def apply_catalogue(self, document: str) -> None:
        self._written += 1
        self.tables.plans.append((len(self.tables.plans) + 1, document, self._written))
        for row in self.tables.tenants.values():
            row["rev"] = self.next_revision()


class MemoryTransaction(ShardTransaction):
    """An open transaction; every named query is a method of that name."""

    __slots__ = ("_answer", "_merged", "_postgres", "_undo", "life", "process")

    def __init__(self, postgres: Postgres, shard: int, process: Process, answer: Callable[[], Awaitable[None]]) -> None:
        super().__init__(None, postgres.shards, shard)  # type: ignore[arg-type]
        self.process = process
        self.life = postgres.life
        self._postgres = postgres
        self._answer = answer
        self._undo: list[Callable[[], None]] = []
        self._merged: dict[CounterKey, int] = {}
        postgres.open.append(self)

    async def rows(self, name: str, *arguments: Any) -> list[Any]:
        postgres = self._postgres
        if not postgres.up or self not in postgres.open:
            self._alive()
        await self._answer()
        if not postgres.up or self not in postgres.open:
            self._alive()
        query = getattr(self, f"_{name}", None)
        if query is None:
            postgres.unknown.add(name)  # the program would take an exception for an outage
            raise LedgerUnavailable(f"the simulated ledger has no {name}")
        return list(query(*arguments))

    async def row(self, name: str, *arguments: Any) -> Any:
        found = await self.rows(name, *arguments)
        return found[0] if found else None

    async def value(self, name: str, *arguments: Any) -> Any:
        found = await self.rows(name, *arguments)
        return found[0][0] if found else None

    def commit(self) -> None:
        self._alive()
        self._end()
        for key, before in self._merged.items():
            self._postgres.watch(key, before, self._postgres.tables.amount(key))

    def roll_back(self) -> None:
        if self in self._postgres.open:
            while self._undo:
                self._undo.pop()()
            self._end()

    def _end(self) -> None:
        self._postgres.open.remove(self)
        if self._postgres.locks.get(self.shard) is self:
            del self._postgres.locks[self.shard]
        if self._postgres.doubting is self:
            self._postgres.doubting = None

    def _alive(self) -> None:
        if self not in self._postgres.open or not self._postgres.up:
            raise LedgerUnavailable("Postgres did not answer")

    def _set(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        if key in table:
            before = table[key]
            self._undo.append(lambda: table.__setitem__(key, before))
        else:
            self._undo.append(lambda: table.__delitem__(key))
        table[key] = value

    def _drop(self, table: dict[Any, Any], key: Any) -> None:
        before = table.pop(key)
        self._undo.append(lambda: table.__setitem__(key, before))

    # Queries.

    def _take_shard(self, _class: int, shard: int) -> Iterable[Any]:
        holder = self._postgres.locks.setdefault(shard, self)
        return [(holder is self,)]

    def _shard_state(self, shard: int) -> Iterable[Any]:
        found = self._postgres.tables.shards.get(shard)
        doubted = shard in self._postgres.tables.doubted
        return [] if found is None else [(*found, doubted, self._postgres.tables.folded_before)]

    def _shard_states(self) -> Iterable[Any]:
        tables = self._postgres.tables
        return [(shard, *found, shard in tables.doubted, 0) for shard, found in tables.shards.items()]

    def _take_doubts(self) -> Iterable[Any]:
        """The program waits here; its next pass is as good."""
        if self._postgres.doubting not in {None, self}:
            raise LedgerUnavailable("lock timeout")
        self._postgres.doubting = self
        return []

    def _doubt_other_shards(self, shard: int) -> Iterable[Any]:
        tables = self._postgres.tables
        for other in tables.shards.keys() - {shard} - tables.doubted.keys():
            self._set(tables.doubted, other, True)
        return []

    def _trust_shard(self, shard: int) -> Iterable[Any]:
        if shard in self._postgres.tables.doubted:
            self._drop(self._postgres.tables.doubted, shard)
        return []

    def _raise_epoch(self, shard: int, beyond: int) -> Iterable[Any]:
        known, generation = self._postgres.tables.shards.get(shard, (0, ""))
        epoch = max(known, beyond) + 1
        self._set(self._postgres.tables.shards, shard, [epoch, generation])
        return [(epoch,)]

    def _set_generation(self, shard: int, generation: str) -> Iterable[Any]:
        epoch = self._postgres.tables.shards.get(shard, (0, ""))[0]
        self._set(self._postgres.tables.shards, shard, [epoch, generation])
        return []

    def _count_lost_leases(self, shard: int, generations: list[str], units: list[int]) -> Iterable[Any]:
        lost = self._postgres.tables.lost_leases
        for generation, told in zip(generations, units, strict=True):
            if told > lost.get((shard, generation), 0):
                self._set(lost, (shard, generation), told)
        return []

    def _introduce_tenants(self, names: list[str], _plan: str, _shard: int) -> Iterable[Any]:
        assert all(name in self._postgres.tables.tenants for name in names)
        return []

    def _merge_counters(self, _shard: int, *joined: str) -> Iterable[Any]:
        counters = self._postgres.tables.counters
        grown = 0
        for key, amount in joined_rows(joined):
            if amount > counters.get(key, 0):
                self._merged.setdefault(key, self._postgres.tables.amount(key))
                self._set(counters, key, amount)
                grown += 1
        return [(grown,)]

    def _recent_counters(self, shard: int, since_hour: int) -> Iterable[Any]:
        return [
            (*key, amount)
            for key, amount in sorted(self._postgres.tables.counted().items())
            if key[4] >= since_hour and crc32(key[0].encode()) % self.shards == shard
        ]

    def _horizon(self) -> int:
        return self._postgres.clock() // 3_600_000 - FOLDED_AFTER_HOURS

    def _shards_to_fold(self, shards: int) -> Iterable[Any]:
        before = self._horizon()
        old = {crc32(key[0].encode()) % shards for key in self._postgres.tables.counters if key[4] < before}
        return [(shard,) for shard in sorted(old)]

    def _fold_counters(self, shard: int, most: int) -> Iterable[Any]:
        tables, before = self._postgres.tables, self._horizon()
        old = [key for key in tables.counters if key[4] < before and crc32(key[0].encode()) % self.shards == shard]
        chosen = sorted(old, key=lambda key: (key[4], *key))[:most]
        for key in chosen:
            self._set(tables.folded, key[:5], {**tables.folded.get(key[:5], {}), key[5]: tables.counters[key]})
            self._drop(tables.counters, key)
            # Not lowered by a roll back: an hour too many is looked at, no more.
            tables.folded_before = max(tables.folded_before, key[4] + 1)
        return [(len(chosen),)]

    def _unfold_windows(self, _shard: int, *columns: list[Any]) -> Iterable[Any]:
        tables = self._postgres.tables
        for window in set(zip(*columns, strict=True)) & tables.folded.keys():
            for writer, amount in tables.folded[window].items():
                self._set(tables.counters, (*window, writer), amount)
            self._drop(tables.folded, window)
        return []

    def _span_totals(self, *columns: list[Any]) -> Iterable[Any]:
        counters = self._postgres.tables.counted()
        for index, (tenant, metric, limit, from_hour, before_hour, period) in enumerate(zip(*columns, strict=True)):
            sums: dict[str, int] = {} if limit else {"": 0}
            for (owner, counted, scope, start, hour, _), amount in counters.items():
                if (owner, counted) != (tenant, metric) or not from_hour <= hour < before_hour:
                    continue
                if (period is None or start == period) and (scope.startswith(f"{limit}:") if limit else not scope):
                    sums[scope] = sums.get(scope, 0) + amount
            for scope, amount in sorted(sums.items()):
                yield index, scope, amount

    def _shards_pending(self) -> Iterable[Any]:
        rows = self._postgres.tables.tenants.values()
        return [(shard,) for shard in sorted({row["shard"] for row in rows if row["rev"] > row["projected"]})]

    def _tenants_pending(self, shard: int, most: int) -> Iterable[Any]:
        rows = self._postgres.tables.tenants.items()
        found = [(row["rev"], name) for name, row in rows if row["shard"] == shard and row["rev"] > row["projected"]]
        return [(name,) for _, name in sorted(found)[:most]]

    def _tenants_by_id(self, names: list[str]) -> Iterable[Any]:
        catalogue = len(self._postgres.tables.plans)
        for name in sorted(names):
            row = self._postgres.tables.tenants[name]
            about = (name, row["plan"], "active", 0, row["parent"], 0, 1, False, "put", row["rev"], row["projected"])
            yield (*about, row["shard"], 0, 0, catalogue, "{}")

    def _mark_tenants_projected(self, names: list[str], revisions: list[int], _months: list[int]) -> Iterable[Any]:
        for name, revision in zip(names, revisions, strict=True):
            row = self._postgres.tables.tenants[name]
            if row["projected"] < revision:
                self._set(row, "projected", revision)
                yield (name,)

    def _forget_tenants_projected(self, shard: int) -> Iterable[Any]:
        for row in self._postgres.tables.tenants.values():
            if row["shard"] == shard:
                self._set(row, "projected", 0)
        return []

    def _leave_revisions_behind(self, revisions: int) -> Iterable[Any]:
        self._postgres.tables.revision += revisions
        return [(self._postgres.tables.revision,)]

    def _renew_tenants(self, shard: int) -> Iterable[Any]:
        for row in self._postgres.tables.tenants.values():
            if row["shard"] == shard:
                self._set(row, "projected", 0)
                self._set(row, "rev", self._postgres.next_revision())
        return []

    def _outrun_revision(self, name: str, forgotten: int, ahead: int) -> Iterable[Any]:
        revision = self._postgres.next_revision()
        if revision <= forgotten:
            revision = self._postgres.tables.revision = forgotten + ahead
        self._set(self._postgres.tables.tenants[name], "rev", revision)
        return []

    def _owe_tenants(self, names: list[str]) -> Iterable[Any]:
        for name in names:
            self._set(self._postgres.tables.tenants[name], "projected", 0)
        return []

    def _plan_versions(self, revision: int, before: int, most: int) -> Iterable[Any]:
        found = [one for one in self._postgres.tables.plans[::-1] if revision in (0, one[0]) and not before]
        return [(number, document, "{}", "", 0, True) for number, document, _ in found[:most]]

    def _catalogue_in_force(self) -> Iterable[Any]:
        return [(number, written) for number, _, written in self._postgres.tables.plans[-1:]]

    def _nothing(self, *_arguments: Any) -> Iterable[Any]:
        return []

    _mark_plan_version_projected = _nothing
    _drop_tenant_limits = _nothing
    _write_tenant_limits = _nothing
    _keys_pending = _nothing
    _keys_by_hash = _nothing
    _mark_keys_projected = _nothing
    _forget_keys_projected = _nothing
    _renew_ledger = _nothing
    _forget_undelivered = _nothing
    _distrust_customers = _nothing
    _rest_lanes = _nothing


def joined_rows(joined: Sequence[str]) -> Iterator[tuple[CounterKey, int]]:
    """Counters as merge_counters takes them: columns that are joined, and last by what."""
    *columns, separator = joined
    tenants, metrics, scopes, writers = (columns[at].split(separator) for at in (0, 1, 2, 5))
    periods, hours, amounts = (map(int, columns[at][1:-1].split(",")) for at in (3, 4, 6))
    return zip(zip(tenants, metrics, scopes, periods, hours, writers, strict=True), amounts, strict=True)


class MemoryLedger:
    """What a flusher holds of the ledger: stands in for sidecar.ledger.connection.Ledger."""

    def __init__(self, postgres: Postgres, process: Process, answer: Callable[[], Awaitable[None]]) -> None:
        self._postgres = postgres
        self._process = process
        self._answer = answer

    async def ensure_partitions(self, _around_s: int) -> int:
        return 0

    def transaction(self) -> _Begun:
        return _Begun(self, -1)

    def shard(self, shard: int) -> _Taken:
        return _Taken(self, shard)

    def _open(self, shard: int) -> MemoryTransaction:
        return MemoryTransaction(self._postgres, shard, self._process, self._answer)


class _Begun:
    """A transaction from its begin to its end; without a generator, as there are hundreds of them in a run."""

    __slots__ = ("_ledger", "_shard", "_transaction")

    _transaction: MemoryTransaction

    def __init__(self, ledger: MemoryLedger, shard: int) -> None:
        self._ledger = ledger
        self._shard = shard

    async def begin(self) -> MemoryTransaction:
        ledger = self._ledger
        await ledger._answer()
        if not ledger._postgres.up:
            raise LedgerUnavailable("Postgres did not answer")
        self._transaction = ledger._open(self._shard)
        return self._transaction

    async def __aenter__(self) -> MemoryTransaction:
        return await self.begin()

    async def __aexit__(self, kind: type[BaseException] | None, *_about: object) -> None:
        transaction = self._transaction
        try:
            if kind is None:
                await self._ledger._answer()
                transaction.commit()
                # The answer to a commit may be lost although it took place.
                await self._ledger._answer()
        finally:
            transaction.roll_back()


class _Taken(_Begun):
    """The same with a shard's lock; None when another has it."""

    __slots__ = ()

    async def __aenter__(self) -> MemoryTransaction | None:  # type: ignore[override]
        transaction = await self.begin()
        try:
            return transaction if await transaction.take() else None
        except BaseException:
            transaction.roll_back()
            raise
