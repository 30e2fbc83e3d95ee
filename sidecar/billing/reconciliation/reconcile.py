"""Compares ledger and outbox with Stripe's meter event summaries, per customer and meter, day and billing period.

Guarantees: a difference is called unexplained only after it was seen twice, while no row of its lane changed, and
            only as far as rows on their way cannot account for it.
Gives up:   installations with more lanes than can be read in a day at the pace of ``shown``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct, structs

from sidecar.billing import objects
from sidecar.billing.outbox.delta import AGE_MAX_S, HOUR_S
from sidecar.billing.outbox.outbox import SETTLE_AFTER_S, Scales
from sidecar.billing.reconciliation import drift, mending, pinpoint
from sidecar.billing.reconciliation.drift import (
    IN_DOUBT,
    MINUTE_UNKNOWN,
    PARKED,
    UNEXPLAINED,
    Lane,
    Line,
    Rows,
    Seen,
    Span,
    Windows,
)
from sidecar.billing.reconciliation.mending import Mender, Repair
from sidecar.billing.reconciliation.pinpoint import Finding, Minute, SentRow
from sidecar.billing.reconciliation.shown import Shown
from sidecar.catalogue.period import DAY_S
from sidecar.errors import StripeRefused
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction

CUSTOMERS_PER_PAGE = 20
LOOKS = 3
PAUSE_S = 2.0


class Unread(Struct, frozen=True):
    """A lane that Stripe would not tell about, and why."""

    tenant: str
    metric: str
    cause: str


class Customer(Struct, frozen=True):
    """A tenant that is billed, as far as it matters here."""

    tenant: str
    customer: str
    billed_from_s: int
    anchor_s: int
    interval_months: int
    now_s: int
    distrusted: list[str]


class Found(Struct, frozen=True):
    """What one tenant's comparison came to: every line that differs, and how many lanes were compared."""

    tenant: str
    since_s: int
    metrics: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    unread: tuple[Unread, ...] = ()
    repairs: tuple[Repair, ...] = ()


class Comparison:
    """Compares tenants; with a mender it also repairs."""

    def __init__(self, ledger: Ledger, shown: Shown, *, mender: Mender | None = None, pause_s: float = PAUSE_S) -> None:
        self._ledger = ledger
        self._shown = shown
        self._mender = mender
        self._pause_s = pause_s
        self._scales = Scales()

    async def tenants(self, tenant: str = "", since_s: int | None = None) -> AsyncIterator[Found]:
        """Compare one tenant, or all, since the start of a day; by default as far back as events may lie."""
        after = ""
        while True:
            async with self._ledger.transaction() as tx:
                rows = await tx.rows("compared_customers", after, tenant, CUSTOMERS_PER_PAGE)
            for row in rows:
                customer = Customer(*row)
                first_s = customer.now_s - AGE_MAX_S if since_s is None else since_s
                yield await self._tenant(customer, first_s // DAY_S * DAY_S)
            if len(rows) < CUSTOMERS_PER_PAGE:
                return
            after = rows[-1]["tenant"]

    async def _tenant(self, customer: Customer, since_s: int) -> Found:
        unread: list[Unread] = []
        lines: list[Line] = []
        repairs: list[Repair] = []
        lanes = await self._lanes(customer, since_s)
        for lane in lanes:
            try:
                found, repaired = await self._lane(customer, lane, since_s)
            except StripeRefused as error:
                unread.append(Unread(lane.tenant, lane.metric, str(error)))
                continue
            lines += drift.differences(found)
            repairs += repaired
        return Found(
            customer.tenant,
            since_s,
            tuple(lane.metric for lane in lanes),
            tuple(lines),
            tuple(unread),
            tuple(repairs),
        )

    async def _lane(self, customer: Customer, lane: Lane, since_s: int) -> tuple[list[Line], list[Repair]]:
        lane, lines, sure = await self._look(customer, lane, since_s)
        lines, findings = await self._pinpointed(lane, lines, customer.now_s)
        if self._mender is None or not sure:
            return lines, []
        repairs = []
        from_s = drift.missed_from(lane)
        if from_s is not None:
            repairs += await self._mender.missed(lane, from_s, sum(part.missed for part in lane.windows))
        for finding in findings:
            repairs += await self._mender.mend(lane, finding, objects.event_name(lane.metric), customer.now_s)
        if repairs:
            lane, lines, _ = await self._look(customer, await self._again(customer, lane, since_s), since_s)
            lines, _ = await self._pinpointed(lane, lines, customer.now_s)
        return lines, repairs

    async def _look(self, customer: Customer, lane: Lane, since_s: int) -> tuple[Lane, list[Line], bool]:
        """Compare until nothing is unexplained, or until the same is twice, while the lane did not change."""
        before: list[Line] = []
        changed, lines = False, before
        for look in range(LOOKS):
            if look:
                await asyncio.sleep(self._pause_s)
            lines = await self._lines(customer, lane, since_s)
            if not any(line.matters for line in lines):
                return lane, lines, True
            now = await self._again(customer, lane, since_s)
            if now == lane and lines == before:
                return lane, lines, True
            changed = now != lane
            if look + 1 < LOOKS:
                before, lane = ([] if changed else lines), now
        # What was sent between a look at the ledger and one at Stripe is no drift; the next comparison will tell.
        return lane, [_unsure(line) for line in lines] if changed else lines, False

    async def _lines(self, customer: Customer, lane: Lane, since_s: int) -> list[Line]:
        spans = drift.spans(lane, since_s, customer.now_s)
        days = [span for span in spans if span.kind == "day"]
        whole = [span for span in days if span.from_s == span.number]
        grouped: dict[int, Seen] = {}
        if whole:
            grouped = await self._shown.grouped(lane, "day", whole[0].from_s, whole[-1].to_s)
        lines = []
        for span in spans:
            if span in whole:
                seen = grouped.get(span.number, Seen())
            elif drift.used(lane, span) or span.kind == "day" or any(span.from_s <= day < span.to_s for day in grouped):
                seen = await self._shown.total(lane, span.from_s, span.to_s)
            else:
                seen = Seen()
            lines.append(drift.compare(lane, span, seen))
        return lines

    async def _pinpointed(self, lane: Lane, lines: Sequence[Line], now_s: int) -> tuple[list[Line], list[Finding]]:
        """Say of every day's difference which rows it comes from, as far as the sums of minutes tell."""
        findings: list[Finding] = []
        told = []
        for line in lines:
            span = Span(line.span, line.from_s - line.from_s % DAY_S, line.from_s, line.to_s)
            if line.span != "day" or not drift.unaccounted(lane, span, line):
                told.append(line)
                continue
            found, unknown = await self._day(lane, span, now_s)
            findings += found
            arrived = sum(finding.amount for finding in found if finding.blame == "arrived")
            moved = {MINUTE_UNKNOWN: unknown, PARKED: arrived, UNEXPLAINED: -unknown - arrived}
            sums = {kind: line.explained.get(kind, 0) + moved.get(kind, 0) for kind in drift.KINDS}
            told.append(structs.replace(line, explained={kind: amount for kind, amount in sums.items() if amount}))
        return told, findings

    async def _day(self, lane: Lane, span: Span, now_s: int) -> tuple[list[Finding], int]:
        async with self._ledger.transaction() as tx:
            rows = await mending.rows_between(tx, lane, span.from_s, span.to_s)
        hours = await self._shown.grouped(lane, "hour", span.number, span.to_s)
        by_hour: dict[int, list[SentRow]] = {hour_s: [] for hour_s in hours}
        for row in rows:
            by_hour.setdefault(row.at_s - row.at_s % HOUR_S, []).append(row)
        findings: list[Finding] = []
        unknown = 0
        for hour_s, inside in by_hour.items():
            shown = hours.get(hour_s, Seen())
            whole = pinpoint.blame(shown, inside, now_s)
            if any(row.adopted for row in inside):
                unknown += whole.unknown
            elif whole != Minute() and inside:
                for from_s, to_s in sorted({pinpoint.span(inside, row.at_s) for row in inside}):
                    here = [row for row in inside if from_s <= row.at_s < to_s]
                    minute = pinpoint.blame(await self._shown.total(lane, from_s, to_s), here, now_s)
                    findings += minute.findings
                    unknown += minute.unknown
        return findings, unknown

    async def _again(self, customer: Customer, lane: Lane, since_s: int) -> Lane:
        lanes = await self._lanes(customer, since_s, lane.metric)
        return lanes[0] if lanes else lane

    async def _lanes(self, customer: Customer, since_s: int, metric: str = "") -> list[Lane]:
        """What the ledger has of a tenant's lanes, seen at one moment."""
        async with self._ledger.transaction() as tx:
            scales = await self._scales.read(tx)
            meters = {
                row[0]: (tuple(row[1]), int(row[2]))
                for row in await tx.rows("compared_meters")
                if row[0] in scales and metric in ("", row[0])
            }
            starts = drift.period_starts(since_s, customer.now_s, customer.anchor_s, customer.interval_months)
            first_s = min(since_s, starts[0])
            rows = await tx.rows(
                "compared_sums",
                customer.tenant,
                list(meters),
                [from_s for _, from_s in meters.values()],
                first_s - first_s % HOUR_S,
                list(starts),
                SETTLE_AFTER_S,
            )
        return [
            Lane(
                tenant=customer.tenant,
                metric=name,
                customer=customer.customer,
                meters=ids,
                scale=scales[name],
                from_s=max(customer.billed_from_s, from_s),
                periods=starts,
                distrusted=name in customer.distrusted,
                windows=tuple(_windows(row) for row in rows if row["what"] == "window" and row["metric"] == name),
                rows=tuple(_rows(row) for row in rows if row["what"] == "rows" and row["metric"] == name),
            )
            for name, (ids, from_s) in meters.items()
        ]


def _unsure(line: Line) -> Line:
    rest = line.explained.get(UNEXPLAINED, 0)
    sums = {**line.explained, IN_DOUBT: line.explained.get(IN_DOUBT, 0) + rest, UNEXPLAINED: 0}
    return structs.replace(line, explained={kind: amount for kind, amount in sums.items() if amount})


def _windows(row: Any) -> Windows:
    day_s, period, _, _, _, _, ledger, undecided, missed, missed_from_s, beyond = tuple(row)[2:]
    return Windows(day_s, period, ledger, undecided, missed, missed_from_s, beyond)


def _rows(row: Any) -> Rows:
    return Rows(*tuple(row)[2:9])


async def keep(tx: Transaction, found: Found) -> None:
    """Keep what a tenant's comparison found, in place of what the last one did."""
    lines = found.lines
    await tx.rows("drop_drift", found.tenant, list(found.metrics), found.since_s)
    if lines:
        await tx.rows(
            "write_drift",
            found.tenant,
            *([getattr(line, name) for line in lines] for name in ("metric", "span", "from_s", "to_s", "ledger")),
            *([getattr(line, name) for line in lines] for name in ("delivered", "waiting", "in_doubt", "parked")),
            *([getattr(line, name) for line in lines] for name in ("late", "stripe")),
            [msgspec.json.encode(line.explained).decode() for line in lines],
            [line.matters for line in lines],
        )
