"""Comparing what journals, Redis, the ledger and Stripe say about the same usage.

Guarantees: in a quiet moment every difference is found, down to a single unit, and nothing else is reported.
Gives up:   busy moments. What is on its way looks like a difference, so the comparison is repeated, and only what is
            different every time is reported.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from sidecar.billing.reconciliation.reconcile import Comparison
from sidecar.catalogue import period
from sidecar.catalogue.model import Catalogue
from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.errors import JournalUnusable, StripeUnavailable
from sidecar.ledger import projection, tenants, usage
from sidecar.ledger.shard import CounterRow
from sidecar.ledger.tenants import TenantRow
from sidecar.ledger.transaction import Transaction
from sidecar.store.client import Store
from sidecar.usage.recovery import inspect

PAGE = 500
# A window as all three know it: series, start of the billing period, hour. Then: writer -> cumulative amount.
Key = tuple[str, int, int]
Windows = dict[Key, dict[str, int]]


class Difference(Struct, frozen=True, order=True):
    """One number that two places disagree about; amounts in base units."""

    tenant: str
    what: str
    left_name: str
    left: int
    right_name: str
    right: int


class Verifier:
    """Compares one installation; each call is one look at it."""

    def __init__(self, store: Store, catalogue: Catalogue, journals: list[Path], now_s: int) -> None:
        self._store = store
        self._catalogue = catalogue
        self._journals = journals
        self._now_s = now_s
        self._generations: dict[int, str] = {}

    async def differences(self, tx: Transaction) -> list[Difference]:
        """Everything that does not agree, in the order of tenants."""
        found = [
            Difference(
                drift.tenant,
                f"{_named(_series(drift.metric, drift.scope), drift.period_s, drift.hour)} in Postgres",
                "total",
                drift.total,
                "counters",
                drift.counted,
            )
            for drift in await usage.drift(tx, 0)
        ]
        journals = self._journal_windows()
        async for row in _all_tenants(tx):
            found += await self._tenant(tx, row, journals.pop(row.tenant, {}))
        for tenant, windows in journals.items():
            found += _compare(tenant, "journal", windows, "ledger", {}, windows)
        return sorted(found)

    async def _tenant(self, tx: Transaction, row: TenantRow, journal: Windows) -> list[Difference]:
        snapshot = projection.snapshot(self._catalogue, row)
        limits = [(rule, *self._bounds(snapshot, rule)) for rule in snapshot.limits if _in_ledger(rule)]
        redis = await self._store.windows(row.tenant)
        this_hour = self._now_s // 3600
        since = min(
            [this_hour - 1, *(start // 3600 for _, start, _ in limits), *(key[2] for key in (*redis, *journal))]
        )
        ledger = _windows(await usage.counters(tx, row.tenant, since))
        # Older windows leave Redis once the ledger has them; those of this hour and the last never do.
        kept = {*redis, *(key for key in ledger if key[2] >= this_hour - 1)}
        found = [
            *_compare(row.tenant, "Redis", redis, "ledger", ledger, kept),
            *_compare_written(row.tenant, journal, ledger),
        ]
        for rule, start_s, end_s in limits:
            found += await self._limit(row.tenant, rule, start_s, end_s, redis, ledger)
        return found

    async def _limit(
        self, tenant: str, rule: LimitRule, start_s: int, end_s: int, redis: Windows, ledger: Windows
    ) -> list[Difference]:
        """A limit's `spent` in Redis against the sum of the ledger's windows that feed it."""

        def feeds(key: Key) -> str | None:
            metric, _, scope = key[0].partition("@")
            within = key[1] == start_s if rule.period == "billing" else start_s <= key[2] * 3600 < end_s
            if metric != rule.metric or not within:
                return None
            if rule.scope == "tenant":
                return None if scope else rule.name
            return scope if scope.startswith(f"{rule.name}:") else None

        sums: dict[str, int] = {} if rule.scope != "tenant" else {rule.name: 0}
        for key, writers in ledger.items():
            limit_id = feeds(key)
            if limit_id is not None:
                sums[limit_id] = sums.get(limit_id, 0) + sum(writers.values())
        fed = {limit_id for key in redis if (limit_id := feeds(key)) is not None}
        found = []
        for limit_id, total in sums.items():
            fields = await self._store.limit(tenant, limit_id, start_s)
            if fields.get("g") != await self._generation(tenant):
                fields = {}  # what an earlier data set left counts for nothing
            if not fields and limit_id not in fed:
                continue  # nobody used it since Redis has its data; it is built when somebody does
            what = f"limit {limit_id} since {_date(start_s)}"
            spent, held = int(fields.get("spent", 0)), int(fields.get("held", 0))
            leases = sum(int(value) for name, value in fields.items() if name.startswith("l:"))
            if spent != total:
                found.append(Difference(tenant, what, "Redis spent", spent, "ledger", total))
            if held != leases:
                found.append(Difference(tenant, what, "Redis held", held, "Redis leases", leases))
        return found

    async def _generation(self, tenant: str) -> str:
        shard = self._store.keys.shard_of(tenant)
        if shard not in self._generations:
            # An epoch below every real one reads the shard's state and announces nothing.
            self._generations[shard] = (await self._store.collect(shard, -1, 0, 2**40)).generation
        return self._generations[shard]

    def _bounds(self, snapshot: Snapshot, rule: LimitRule) -> tuple[int, int]:
        return period.bounds(rule.period, self._now_s, snapshot.anchor_s, snapshot.interval_months)

    def _journal_windows(self) -> dict[str, Windows]:
        found: dict[str, Windows] = {}
        for path in self._journals:
            try:
                writer, windows = inspect(path)
            except JournalUnusable:
                if path.exists():
                    raise
                continue  # deleted meanwhile, because the ledger has all of it
            for window in windows:
                key = (window.key.series, window.key.period, window.key.hour)
                found.setdefault(window.key.tenant, {}).setdefault(key, {})[writer] = window.value
        return found


async def stripe_differences(comparison: Comparison) -> list[Difference]:
    """What Stripe has otherwise than the outbox and ledger, beyond what is on its way.

    Raises StripeUnavailable when nothing differs, but not everything could be read.
    """
    found: list[Difference] = []
    unread: list[Difference] = []
    async for compared in comparison.tenants():
        for line in compared.lines:
            if line.span == "day" and line.matters:
                what = f"meter {line.metric} on {_date(line.from_s)[:10]}"
                left = ("ledger", line.ledger) if line.delivered == line.stripe else ("outbox", line.delivered)
                found.append(Difference(line.tenant, what, *left, "Stripe", line.stripe))
        unread += [
            Difference(lost.tenant, f"meter {lost.metric}: {lost.cause}", "outbox", 0, "Stripe", 0)
            for lost in compared.unread
        ]
    if unread and not found:
        raise StripeUnavailable(f"{len(unread)} meters could not be compared: {unread[0].tenant}, {unread[0].what}")
    return sorted(found + unread)


def _compare(
    tenant: str, left_name: str, left: Windows, right_name: str, right: Windows, keys: Iterable[Key]
) -> Iterator[Difference]:
    for key in sorted(keys):
        ours, theirs = left.get(key, {}), right.get(key, {})
        for writer in sorted({*ours, *theirs}):
            one, other = ours.get(writer, 0), theirs.get(writer, 0)
            if one != other:
                yield Difference(tenant, f"{_named(*key)} of writer {writer}", left_name, one, right_name, other)


def _compare_written(tenant: str, journal: Windows, ledger: Windows) -> Iterator[Difference]:
    """Journals hold some writers only, so the ledger's other writers are no difference."""
    for key, writers in journal.items():
        known = {writer: amount for writer, amount in ledger.get(key, {}).items() if writer in writers}
        yield from _compare(tenant, "journal", {key: writers}, "ledger", {key: known}, [key])


async def _all_tenants(tx: Transaction) -> AsyncIterator[TenantRow]:
    after = ""
    while page := await tenants.page(tx, after=after, most=PAGE):
        for row in page:
            yield row
        after = page[-1].tenant


def _windows(rows: list[CounterRow]) -> Windows:
    found: Windows = {}
    for row in rows:
        found.setdefault((_series(row.metric, row.scope), row.period_s, row.hour), {})[row.writer] = row.amount
    return found


def _in_ledger(rule: LimitRule) -> bool:
    """Limits of seconds and minutes use small windows of their own, which never reach the ledger."""
    return rule.period not in ("second", "minute")


def _series(metric: str, scope: str) -> str:
    return f"{metric}@{scope}" if scope else metric


def _named(series: str, period_s: int, hour: int) -> str:
    return f"window {series} of {_date(hour * 3600)}, period {_date(period_s)}"


def _date(at_s: int) -> str:
    return dt.datetime.fromtimestamp(at_s, dt.UTC).strftime("%Y-%m-%dT%H:%MZ")
