"""Named queries of sql/lanes.sql in memory: lanes that are claimed, rows that are sent, doubts that are settled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from tests.simulation.billing.tables import NEVER, WORK, LaneRow, ever, rounded, seconds
from tests.simulation.billing.transaction import LaneTransaction

HOUR_S, AGE_MAX_S = 3_600, 35 * 86_400
OPEN = ("waiting", "sending", "in_doubt")


class Sending(LaneTransaction):
    """Every named query is a method of that name."""

    __slots__ = ()

    # Sending.

    def _claim_lanes(self, token: str, most: int, claim_s: int, tenant: str) -> Iterable[Any]:
        ready = [
            (row.deadline, ever(row.due), lane)
            for lane, row in self._all.lanes.items()
            if row.due is not None
            and row.due <= self._now
            and (row.claimed_until is None or row.claimed_until < self._now)
            and tenant in {"", lane[0]}
            and self._server.lane_locks.get(lane) in {None, self}
        ]
        chosen = [lane for _, _, lane in sorted(ready)[:most]]
        for lane in chosen:
            self._server.lane_locks[lane] = self
            until = self._now + claim_s * 1000
            self._set(self._all.lanes, lane, replace(self._all.lanes[lane], claim=token, claimed_until=until))
        return [(*lane, self._all.lanes[lane].failures) for lane in chosen]

    def _lane_work(self, tenants: list[str], metrics: list[str]) -> Iterable[Any]:
        for lane in zip(tenants, metrics, strict=True):
            customer = self._all.customers[lane[0]]
            rows = [row for row in self._lane_rows(lane) if row.state in {"waiting", "sending"}]
            order = lambda row: (row.state == "waiting", row.deadline_s, row.hour_s, row.number)  # noqa: E731
            row = min(rows, key=order, default=None)
            doubtful = any(one.state == "in_doubt" and ever(one.look_at) <= self._now for one in self._lane_rows(lane))
            sendable: tuple[Any, ...] = (None,) * 12
            if row is not None:
                times = (row.at_s, row.deadline_s, seconds(row.first_sent), seconds(row.last_sent))
                about = (row.value, row.identifier, row.attempt, row.tries, row.replays)
                sendable = (row.period_s, row.hour_s, row.number, *about, *times)
            bills_from_s = max(row.hour_s, row.period_s) if row is not None else 0
            whose = (*lane, customer.customer, f"mtr_{lane[1]}", f"quota_{lane[1]}", rounded(self._now))
            terms = (self._server.meters.anchor_s, 1, 0, bills_from_s)
            about = (*whose, *terms, self._distrusted(lane), seconds(customer.restored), doubtful, *sendable)
            yield dict(zip(WORK, about, strict=True))

    def _begin_sending(self, *columns: list[Any]) -> Iterable[Any]:
        for _, row in self._keyed(columns):
            first = self._now if row.first_sent is None else row.first_sent
            self._put(row, state="sending", first_sent=first, last_sent=self._now, tries=row.tries + 1)
        return []

    def _doubt_rows(self, *columns: Any) -> Iterable[Any]:
        for index, row in self._keyed(columns):
            look_at = (self._now if row.last_sent is None else row.last_sent) + columns[6] * 1000
            self._put(row, state="in_doubt", reason=columns[5][index], delivered=None, look_at=look_at)
        return []

    def _explain_rows(self, *columns: Any) -> Iterable[Any]:
        for index, row in self._keyed(columns):
            self._put(row, reason=columns[5][index])
        return []

    def _move_rows(self, *columns: Any) -> Iterable[Any]:
        for index, row in self._keyed(columns):
            if row.first_sent is None:
                moved = replace(row, at_s=columns[5][index], deadline_s=columns[6][index], late=columns[7][index])
                self._put(moved)
                self._server.named(moved)
        return []

    def _write_off_rows(self, *columns: Any) -> Iterable[Any]:
        for _, row in self._keyed(columns):
            if row.first_sent is None:
                self._put(row, state="unbillable", reason=columns[5])
        return []

    def _reserve_pace(self, calls: int, rate: int) -> Iterable[Any]:
        next_free, permille, changed = self._all.about["pace"]
        now = self._now
        step_ms = 1_000_000 / (rate * permille)
        begins = max(next_free, now)
        rested = changed < now - 2_000
        faster = min(1000, permille + (50 if rested else 0))
        self._set(
            self._all.about, "pace", (begins + calls * step_ms, faster, now if permille < 1000 and rested else changed)
        )
        return [(int((begins - now) * 1000), int(step_ms * 1000), faster)]

    def _slow_pace(self) -> Iterable[Any]:
        next_free, permille, changed = self._all.about["pace"]
        if changed < self._now - 1_000:
            slower = (max(next_free, self._now + 500), max(250, permille * 7 // 10), self._now)
            self._set(self._all.about, "pace", slower)
        return []

    def _lock_lanes(self, *columns: list[Any]) -> Iterable[Any]:
        lanes = self._all.lanes
        for tenant, metric, claim in sorted(zip(*columns, strict=True)):
            if (tenant, metric) in lanes:
                yield tenant, metric, lanes[tenant, metric].claim == claim

    def _record_fates(self, *columns: Any) -> Iterable[Any]:
        for index, row in self._keyed(columns):
            identifier, state, reason, replays, no_effect, ours, at_s = (column[index] for column in columns[5:12])
            ours = ours and row.state == "sending"
            news = state == "delivered" != row.state and row.reported is None
            if row.identifier != identifier or not (ours or news):
                continue
            self._put(
                row,
                state=state,
                at_s=at_s if state == "delivered" else row.at_s,
                reason=reason,
                replays=row.replays + replays,
                first_sent=None if no_effect else row.first_sent,
                delivered=self._now if state == "delivered" else None,
                look_at=(row.last_sent or 0) + columns[12] * 1000 if state == "in_doubt" else None,
            )
        return []

    def _release_lanes(self, *columns: list[Any]) -> Iterable[Any]:
        for claim, tenant, metric, failures, pause_ms in zip(*columns, strict=True):
            known = self._all.lanes.get((tenant, metric))
            if known is None or known.claim != claim:
                continue
            rows = [row for row in self._lane_rows((tenant, metric)) if row.state in OPEN]
            dues = [max(row.look_at or 0, self._now) if row.state == "in_doubt" else self._now for row in rows]
            given = LaneRow(
                due=min(dues) + pause_ms if dues else None,
                deadline=min((row.deadline_s * 1000 for row in rows), default=NEVER),
                not_before=self._now + pause_ms,
                failures=failures,
                verified=known.verified,
            )
            self._set(self._all.lanes, (tenant, metric), given)
        return []

    # Settling.

    def _rows_of_hour(self, tenant: str, metric: str, hour_s: int) -> Iterable[Any]:
        rows = sorted(
            self._lane_rows((tenant, metric)), key=lambda row: (row.at_s, row.hour_s, row.period_s, row.number)
        )
        for row in rows:
            may = row.state in {"delivered", "sending", "in_doubt"} or row.first_sent is not None
            if may and hour_s <= row.at_s < hour_s + HOUR_S:
                told = (row.value, row.identifier, row.attempt, row.tries, row.replays, row.at_s, row.deadline_s)
                to_settle = row.state == "in_doubt" and ever(row.look_at) <= self._now
                times = (seconds(row.first_sent), seconds(row.last_sent))
                doubted_s = max(seconds(row.first_sent), seconds(row.reported))
                about = (row.state, row.adopted, row.summed, seconds(row.delivered), doubted_s, to_settle)
                yield row.period_s, row.hour_s, row.number, *told, *times, *about

    def _hours_in_doubt(self, tenant: str, metric: str, most: int) -> Iterable[Any]:
        rows = self._lane_rows((tenant, metric))
        doubtful = [row for row in rows if row.state == "in_doubt" and ever(row.look_at) <= self._now]
        return [(hour_s,) for hour_s in sorted({row.at_s // HOUR_S * HOUR_S for row in doubtful})[:most]]

    def _witness(self, tenant: str, metric: str, after_s: int) -> Iterable[Any]:
        rows = [
            row
            for row in self._lane_rows((tenant, metric))
            if row.state == "delivered" and not row.adopted and (row.delivered or 0) > after_s * 1000
            and row.at_s * 1000 > self._now - AGE_MAX_S * 1000
        ]  # fmt: skip
        return [(row.at_s,) for row in sorted(rows, key=lambda row: -(row.delivered or 0))[:1]]

    def _look_later(self, *columns: Any) -> Iterable[Any]:
        for index, row in self._keyed(columns):
            if row.state == "in_doubt":
                self._put(row, look_at=self._now + columns[6] * 1000, reason=columns[5][index])
        return []

    def _settle_rows(self, *columns: Any) -> Iterable[Any]:
        for _, row in self._keyed(columns):
            if row.state == "in_doubt":
                self._put(row, state="delivered", delivered=self._now, reason="", look_at=None)
        return []

    def _new_attempts(self, *columns: Any) -> Iterable[Any]:
        for index, row in self._keyed(columns):
            fresh = replace(
                row,
                identifier=columns[5][index],
                attempt=row.attempt + 1,
                state="waiting",
                reason=columns[6][index],
                first_sent=None,
                last_sent=None,
                look_at=None,
                delivered=None,
                reported=None,
                replays=0,
                tries=0,
                summed=False,
            )
            self._put(fresh)
            self._server.named(fresh)
        return []

    def _park_rows(self, *columns: Any) -> Iterable[Any]:
        for index, row in self._keyed(columns):
            self._put(row, state="parked", reason=columns[5][index], look_at=None, delivered=None)
        return []

    def _mark_summed(self, *columns: list[Any]) -> Iterable[Any]:
        for tenant, metric, from_s, before_s in zip(*columns, strict=True):
            for row in list(self._lane_rows((tenant, metric))):
                if from_s <= row.at_s < before_s and row.first_sent is not None:
                    self._put(row, summed=True)
        return []

    def _lock_lanes_of_rows(self, identifiers: list[str]) -> Iterable[Any]:
        del identifiers  # locked by now
        return []

    def _rows_by_identifier(self, identifier: str) -> Iterable[Any]:
        for rows in self._all.rows.values():
            for row in rows.values():
                if row.identifier == identifier:
                    key = (row.tenant, row.metric, row.period_s, row.hour_s, row.number)
                    return [(*key, row.attempt, row.state, row.tries, row.summed)]
        return []

    def _mark_reported(self, identifier: str) -> Iterable[Any]:
        for lane_rows in list(self._all.rows.values()):
            for row in list(lane_rows.values()):
                if row.identifier == identifier:
                    self._put(row, reported=self._now)
        return []

    def _rest_lane(self, tenant: str, metric: str, rest_s: int) -> Iterable[Any]:
        due = self._now + rest_s * 1000
        known = self._all.lanes.get((tenant, metric), LaneRow())
        self._set(self._all.lanes, (tenant, metric), replace(known, due=due, not_before=due))
        return []
