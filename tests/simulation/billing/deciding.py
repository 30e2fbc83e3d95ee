"""Named queries of sql/outbox.sql in memory: counters that grow, deltas that are decided, a ledger older than Stripe.

Gives up:   trials, changes of subscriptions, and folding.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from decimal import Decimal
from typing import Any
from zlib import crc32

from msgspec.structs import replace

from sidecar.errors import LedgerRefused
from tests.simulation.billing.tables import METRIC, NEVER, STATE, UNDECIDED, Lane, LaneRow, OutboxRow, ever, rounded
from tests.simulation.billing.transaction import LaneTransaction
from tests.simulation.postgres import joined_rows

HOUR_S, MINUTE_S = 3_600, 60
METERED_SINCE_S = 0


class Deciding(LaneTransaction):
    """Every named query is a method of that name."""

    __slots__ = ()

    # Counters.

    def _merge_counters(self, shard: int, *joined: str) -> Iterable[Any]:
        counters = self._all.counters
        before = {key: counters.get(key, 0) for key, _ in joined_rows(joined)}
        found = list(super()._merge_counters(shard, *joined))
        grown = [key for key, amount in before.items() if counters.get(key, 0) > amount]
        for key in grown:
            window = (key[0], key[1], key[3], key[4] * HOUR_S)
            more = counters[key] - before[key]
            self._set(self._all.windows, window, self._all.windows.get(window, 0) + more)
        if grown:
            touched, decided, metered = self._all.decided.get(shard, (None, None, ()))
            least = min(key[4] for key in grown) * HOUR_S
            if touched is None or touched > least:
                self._set(self._all.decided, shard, (least, decided, metered))
        return found

    # Deciding.

    def _installation(self) -> Iterable[Any]:
        return [(self._all.about["ledger_id"], self.shards)]

    def _metrics_known(self) -> Iterable[Any]:
        return [(1, 1)]

    def _current_revision(self) -> Iterable[Any]:
        return [(1,)]

    def _metrics(self) -> Iterable[Any]:
        return [METRIC((name, "sum", scale, 1)) for name, scale in self._server.meters.scales.items()]

    def _shards_to_decide(self) -> Iterable[Any]:
        ledger_id, now_s = self._all.about["ledger_id"], rounded(self._now)
        decided = self._all.decided
        shards = {shard: state[1] or 0 for shard, state in decided.items() if state[0] is not None}
        for tenant, customer in self._all.customers.items():
            if not customer.looked:
                shard = crc32(tenant.encode()) % self.shards
                shards[shard] = decided.get(shard, (None, None, ()))[1] or 0
        if not shards:
            return [(ledger_id, now_s, None, None)]
        return [(ledger_id, now_s, shard, rounded(ms)) for shard, ms in sorted(shards.items())]

    def _outbox_state(self, shard: int) -> Iterable[Any]:
        touched_s, _, metered = self._all.decided.get(shard, (None, None, ()))
        meters = list(self._server.meters.scales)
        new_s = METERED_SINCE_S if set(meters) - set(metered) else None
        newcomers = [
            tenant
            for tenant, one in self._all.customers.items()
            if not one.looked and crc32(tenant.encode()) % self.shards == shard
        ]
        about = (self._all.about["ledger_id"], rounded(self._now), touched_s, list(metered), meters, new_s, newcomers)
        return [STATE(about)]

    def _undecided_windows(
        self, shard: int, since_s: int | None, most: int, tenant: str, metrics: list[str], newcomers: list[str]
    ) -> Iterable[Any]:
        found = []
        for (owner, metric, period_s, hour_s), amount in self._all.windows.items():
            if crc32(owner.encode()) % self.shards != shard or tenant not in {"", owner} or metric not in metrics:
                continue
            if (
                not (owner in newcomers or (since_s is not None and hour_s >= since_s))
                or owner not in self._all.customers
            ):
                continue
            lane = (owner, metric)
            billed, number = self._billed(lane, period_s, hour_s)
            if amount <= billed:
                continue
            held = ""
            if self._distrusted(lane):
                held = "unverified"
            elif max(hour_s, period_s) * 1000 > self._now:
                held = "future"
            elif any(row.state == "waiting" and not row.tries for row in self._lane_rows(lane)):
                held = "backlog"
            rest = (self._server.meters.anchor_s, 1, held, 0, max(hour_s, period_s))
            found.append(UNDECIDED((owner, metric, period_s, hour_s, amount - billed, number + 1, *rest)))
        order = lambda row: (row[8] != "", row[3], row[0], row[1], row[2])  # noqa: E731
        return heapq.nsmallest(most, found, key=order)

    def _minutes_taken(self, *columns: list[Any]) -> Iterable[Any]:
        found = set()
        for index, (tenant, metric, from_s, to_s) in enumerate(zip(*columns, strict=True)):
            rows = self._lane_rows((tenant, metric))
            found |= {(index, row.at_s // MINUTE_S) for row in rows if from_s <= row.at_s < to_s}
        return sorted(found)

    def _write_deltas(self, *columns: list[Any]) -> Iterable[Any]:
        for *about, adopted, unbillable in zip(*columns, strict=True):
            tenant, metric, period_s, hour_s, number = about[:5]
            state = "delivered" if adopted else "unbillable" if unbillable else "waiting"
            row = OutboxRow(
                **dict(zip(OutboxRow.__struct_fields__, about, strict=False)),
                adopted=adopted,
                state=state,
                reason=unbillable,
                attempt=0 if adopted else 1,
                delivered=self._now if adopted else None,
            )
            rows = self._all.rows.setdefault((tenant, metric), {})
            if (period_s, hour_s, number) in rows:
                raise LedgerRefused("duplicate key value violates unique constraint")
            self._set(rows, (period_s, hour_s, number), row)
            self._server.named(row)
        return []

    def _wake_lanes(self, *columns: list[Any]) -> Iterable[Any]:
        deadlines: dict[Lane, int] = {}
        for tenant, metric, deadline_s in zip(*columns, strict=True):
            deadlines[tenant, metric] = min(deadlines.get((tenant, metric), NEVER), deadline_s * 1000)
        for lane, deadline in sorted(deadlines.items()):
            known = self._all.lanes.get(lane)
            if known is None:
                self._set(self._all.lanes, lane, LaneRow(due=self._now, deadline=deadline))
                continue
            due = min(ever(known.due), max(self._now, known.not_before or 0))
            self._set(self._all.lanes, lane, replace(known, due=due, deadline=min(known.deadline, deadline)))
        return []

    def _wake_unverified_lanes(self, tenants: list[str], metrics: list[str], after_s: int) -> Iterable[Any]:
        for lane in sorted(set(zip(tenants, metrics, strict=True))):
            known = self._all.lanes.get(lane, LaneRow())
            if known.due is None:
                restored = self._all.customers[lane[0]].restored or 0
                self._set(self._all.lanes, lane, replace(known, due=max(restored + after_s * 1000, self._now)))
        return []

    def _decided(self, shard: int, left_s: int | None, meters: list[str]) -> Iterable[Any]:
        self._set(self._all.decided, shard, (left_s, self._now, tuple(meters)))
        return []

    def _customers_looked_at(self, tenants: list[str]) -> Iterable[Any]:
        for tenant in tenants:
            self._set(self._all.customers, tenant, replace(self._all.customers[tenant], looked=True))
        return []

    # A ledger older than Stripe.

    def _renew_ledger(self) -> Iterable[Any]:
        self._set(self._all.about, "ledger_id", self._server.new_id())
        return []

    def _forget_undelivered(self, shard: int, tenant: str) -> Iterable[Any]:
        for lane in list(self._lanes_of(shard, tenant)):
            rows = self._all.rows.get(lane, {})
            for key in [key for key, row in rows.items() if row.state != "delivered"]:
                self._drop(rows, key)
        return []

    def _forget_undelivered_of_lane(self, tenant: str, metric: str) -> Iterable[Any]:
        rows = self._all.rows.get((tenant, metric), {})
        for key in [key for key, row in rows.items() if row.state != "delivered"]:
            self._drop(rows, key)
            self._set(self._all.customers, tenant, replace(self._all.customers[tenant], looked=False))
        return []

    def _distrust_customers(self, shard: int, tenant: str) -> Iterable[Any]:
        for name, one in list(self._all.customers.items()):
            if name == tenant or crc32(name.encode()) % self.shards == shard:
                self._set(self._all.customers, name, replace(one, restored=self._now, looked=False))
        return []

    def _rest_lanes(self, shard: int, tenant: str) -> Iterable[Any]:
        for lane in list(self._lanes_of(shard, tenant)):
            if lane in self._all.lanes:
                self._set(self._all.lanes, lane, LaneRow(verified=self._all.lanes[lane].verified))
        return []

    def _delivered_by_hour(self, tenant: str, metric: str, since_s: int) -> Iterable[Any]:
        sums: dict[int, Decimal] = {}
        for row in self._lane_rows((tenant, metric)):
            if row.state == "delivered" and row.at_s >= since_s:
                hour_s = row.at_s // HOUR_S * HOUR_S
                sums[hour_s] = sums.get(hour_s, Decimal(0)) + Decimal(row.value)
        return [(hour_s, format(total, "f")) for hour_s, total in sorted(sums.items())]

    def _unbilled_windows(self, tenant: str, metric: str) -> Iterable[Any]:
        found = []
        for (owner, counted, period_s, hour_s), amount in self._all.windows.items():
            billed, number = self._billed((tenant, metric), period_s, hour_s)
            if (owner, counted) == (tenant, metric) and amount > billed:
                found.append((period_s, hour_s, amount - billed, number + 1))
        return sorted(found, key=lambda row: (row[1], row[0]))

    def _next_number(self, tenant: str, metric: str, period_s: int, hour_s: int) -> Iterable[Any]:
        return [(self._billed((tenant, metric), period_s, hour_s)[1] + 1,)]

    def _lane_verified(self, tenant: str, metric: str) -> Iterable[Any]:
        known = self._all.lanes.get((tenant, metric))
        if known is not None:
            self._set(self._all.lanes, (tenant, metric), replace(known, verified=self._now))
        return []

    def _outbox_gauges(self) -> Iterable[Any]:
        return [(0, 0, 0, 0)]

    def _fold_delivered(self, _kept_s: int, _lanes: int) -> Iterable[Any]:
        return [(0, 0)]  # nothing here gets as old
