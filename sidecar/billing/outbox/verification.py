"""Brings a ledger that was restored from a backup up to what Stripe already has of a lane.

Guarantees: afterwards the rows of the lane stand for exactly what Stripe has, so that the totals agree once the rest
            is sent. What Stripe has beyond the ledger is taken for windows of the same hour first, then for the oldest
            ones that are not billed; what no window can explain stays with its hour, and reconciliation tells of it.
            A report about a row that was compared is left to the summaries after that.
Gives up:   hours beyond the 35 days in which events may lie.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from decimal import Decimal

from msgspec import Struct

from sidecar.billing.outbox import lanes, outbox
from sidecar.billing.outbox.delta import AGE_MAX_S, HOUR_S, Window, identifier, value
from sidecar.billing.outbox.lanes import Work
from sidecar.billing.outbox.outbox import Delta
from sidecar.billing.outbox.settlement import Summaries, equal
from sidecar.catalogue.period import DAY_S, bounds
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction
from sidecar.logs import fields

log = logging.getLogger(__name__)

HOURS_AT_ONCE = 96  # whole days, of the 100 spans that Stripe answers with
PATIENCE_S = 86_400  # for summaries that show less than was confirmed


class Unbilled(Struct):
    """A window with more than its rows stand for; ``number`` is that of its next row."""

    period_s: int
    hour_s: int
    amount: int
    number: int


class Adopted(Struct, frozen=True):
    """Part of what Stripe has, taken for a window; ``at_s`` is the hour in which Stripe has it."""

    period_s: int
    hour_s: int
    number: int
    amount: int
    at_s: int


def adopt(beyond: Mapping[int, int], unbilled: Sequence[Unbilled]) -> tuple[list[Adopted], dict[int, int]]:
    """Take what Stripe has beyond the ledger, by hour, for windows; also returns what no window could take."""
    found: list[Adopted] = []
    left = dict(beyond)
    for same_hour in (True, False):
        for at_s in sorted(left):
            for window in unbilled:
                if same_hour and window.hour_s != at_s:
                    continue
                amount = min(left[at_s], window.amount)
                if amount:
                    found.append(Adopted(window.period_s, window.hour_s, window.number, amount, at_s))
                    window.amount -= amount
                    window.number += 1
                    left[at_s] -= amount
    return found, {at_s: amount for at_s, amount in left.items() if amount}


async def verify(ledger: Ledger, summaries: Summaries, work: Work, scale: int) -> int | None:
    """Compare a claimed lane with Stripe and adopt what is missing here; how many rows, None: to be tried again."""
    since_s = (work.now_s - AGE_MAX_S) // DAY_S * DAY_S
    async with ledger.transaction() as tx:
        ours = await _delivered(tx, work, since_s)
    theirs = await _by_hour(summaries, work, since_s, ours)
    units = Decimal(10) ** scale
    beyond: dict[int, int] = {}
    for hour_s, seen in theirs.items():
        mine = ours.get(hour_s, Decimal(0))
        if not equal(seen, mine):
            beyond[hour_s] = int(((seen - mine) * units).to_integral_value())
    if any(amount < 0 for amount in beyond.values()) and work.now_s < work.restored_s + PATIENCE_S:
        log.warning("Stripe shows less than it confirmed", extra=fields(tenant=work.tenant, metric=work.metric))
        return None
    return await _write(
        ledger, work, since_s, ours, {hour: amount for hour, amount in beyond.items() if amount > 0}, scale
    )


async def _by_hour(summaries: Summaries, work: Work, since_s: int, ours: Mapping[int, Decimal]) -> dict[int, Decimal]:
    """What Stripe has by hour, of days on which it or we have anything.

    Days alone would not do: two hours may differ by the same, and a report about what is too much here tells later.
    """
    before_s = work.now_s // DAY_S * DAY_S + DAY_S
    days = await summaries.spans(work, "day", since_s, before_s)
    found = dict.fromkeys(ours, Decimal(0))
    used = days.keys() | {hour_s - hour_s % DAY_S for hour_s in ours}
    wanted = sorted(day_s for day_s in used if day_s < before_s)
    while wanted:
        end_s = min(wanted[0] + HOURS_AT_ONCE * HOUR_S, before_s)
        found |= await summaries.spans(work, "hour", wanted[0], end_s)
        wanted = [day_s for day_s in wanted if day_s >= end_s]
    return found


async def _delivered(tx: Transaction, work: Work, since_s: int) -> dict[int, Decimal]:
    """What was delivered, by the hour of its timestamps."""
    rows = await tx.rows("delivered_by_hour", work.tenant, work.metric, since_s)
    return {int(hour_s): Decimal(total) for hour_s, total in rows}


async def _write(
    ledger: Ledger, work: Work, since_s: int, compared: Mapping[int, Decimal], beyond: Mapping[int, int], scale: int
) -> int | None:
    async with ledger.transaction() as tx:
        if not await lanes.still_mine(tx, work) or await _delivered(tx, work, since_s) != compared:
            return None  # a report may have taken something back meanwhile
        # A report may have left something in doubt: what Stripe has of it is among what is compared.
        await tx.rows("forget_undelivered_of_lane", work.tenant, work.metric)
        await outbox.mark_summed(tx, [(work.tenant, work.metric, since_s, work.now_s + DAY_S)])
        rows = await tx.rows("unbilled_windows", work.tenant, work.metric)
        taken, left = adopt(beyond, [Unbilled(*map(int, row)) for row in rows])
        for hour_s, amount in left.items():
            period_s = bounds("billing", hour_s, work.anchor_s, work.interval_months)[0]
            number = await tx.value("next_number", work.tenant, work.metric, period_s, hour_s)
            used = sum((item.period_s, item.hour_s) == (period_s, hour_s) for item in taken)
            taken.append(Adopted(period_s, hour_s, int(number) + used, amount, hour_s))
        ledger_id = str(await tx.value("installation"))
        await outbox.write(tx, [_delta(ledger_id, work, item, scale) for item in taken])
        await tx.rows("lane_verified", work.tenant, work.metric)
    if taken:
        log.warning(
            "usage adopted that Stripe had already",
            extra=fields(
                tenant=work.tenant,
                metric=work.metric,
                rows=len(taken),
                amount=sum(item.amount for item in taken),
                unexplained=sum(left.values()),
            ),
        )
    return len(taken)


def _delta(ledger_id: str, work: Work, item: Adopted, scale: int) -> Delta:
    window = Window(work.tenant, work.metric, item.period_s, item.hour_s)
    return Delta(
        window,
        item.number,
        item.amount,
        value(item.amount, scale),
        identifier(ledger_id, window, item.number, 0),
        item.at_s,
        item.at_s + HOUR_S,
        late=False,
        adopted=True,
    )
