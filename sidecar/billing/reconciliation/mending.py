"""Repairs of what a comparison with Stripe found, each only where it cannot make matters worse.

Guarantees: every repair looks again at the row, in the transaction that changes it and with its lane locked and
            unclaimed, and does nothing when anything moved. What is sent again has a new identifier and was twice seen
            not to be there, while something delivered later was; a report about what its hour's sum was explained
            with is left to the summaries after that. Every repair is in the audit log.
Gives up:   a busy lane: the next comparison finds the same again.
Source:     https://docs.stripe.com/api/billing/meter-event-adjustment (events can be cancelled for 24 h).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from sidecar.billing.outbox import delta, outbox
from sidecar.billing.outbox.delta import AGE_SENT_MAX_S, HOUR_S, MINUTE_S, Window
from sidecar.billing.reconciliation import pinpoint
from sidecar.billing.reconciliation.drift import Lane
from sidecar.billing.reconciliation.pinpoint import Finding, SentRow
from sidecar.billing.reconciliation.shown import Shown
from sidecar.billing.stripe_api import StripeApi, errors
from sidecar.errors import Conflict, NotFound, StripeRefused
from sidecar.ledger import audit
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction
from sidecar.logs import fields

log = logging.getLogger(__name__)

ALONE_AFTER_S = 86_400  # the same for a lane in which nothing was delivered since
CANCEL_MAX_S = 86_400  # Stripe cancels no older events
RETRIES_MAX = 10_000  # at once

Kind = Literal["decided_again", "sent_again", "settled", "cancelled"]


class Repair(Struct, frozen=True, kw_only=True):
    """What was done about a difference. ``identifier`` is the one it was found under, where a row was."""

    tenant: str
    metric: str
    kind: Kind
    amount: int
    identifier: str = ""


class Mender:
    """Repairs. ``asked``: a person asked for it, so that also is done what nothing but time speaks for."""

    def __init__(self, ledger: Ledger, api: StripeApi, shown: Shown, *, actor: str, asked: bool) -> None:
        self._ledger = ledger
        self._api = api
        self._shown = shown
        self._actor = actor
        self._asked = asked

    async def missed(self, lane: Lane, from_s: int, amount: int) -> list[Repair]:
        """Have the outbox look again at windows that it overlooked."""
        async with self._ledger.transaction() as tx:
            await tx.rows("look_again", lane.tenant, from_s)
            return [await self._done(tx, lane, "decided_again", amount)]

    async def mend(self, lane: Lane, finding: Finding, event_name: str, now_s: int) -> list[Repair]:
        """Repair one finding if that is safe; empty when it is not, or not any more."""
        if finding.blame == "lacking":
            return await self._send_again(lane, finding.row, now_s)
        if finding.blame == "arrived":
            return await self._settle(lane, finding.row, now_s)
        return await self._cancel(lane, finding.row, event_name, now_s) if self._asked else []

    async def _send_again(self, lane: Lane, row: SentRow, now_s: int) -> list[Repair]:
        if row.adopted or row.at_s <= now_s - AGE_SENT_MAX_S or row.delivered_s > now_s - outbox.SETTLE_AFTER_S:
            return []
        if not await self._shows_later(lane, row) and not (self._asked and row.delivered_s <= now_s - ALONE_AFTER_S):
            return []
        hour = await self._seen(lane, Finding(row, "lacking"), now_s)
        if hour is None:
            return []
        async with self._ledger.transaction() as tx:
            if not await _still(tx, row, lane, hour):
                return []
            await send_again(
                tx, [row], "Stripe had confirmed it and does not have it", span=pinpoint.span(hour, row.at_s)
            )
            return [await self._done(tx, lane, "sent_again", row.amount, row.identifier)]

    async def _seen(self, lane: Lane, finding: Finding, now_s: int) -> list[SentRow] | None:
        """The rows of the hour, if their sum still says what was found."""
        at_s = finding.row.at_s
        async with self._ledger.transaction() as tx:
            hour = await rows_between(tx, lane, *_hour(at_s))
        from_s, to_s = pinpoint.span(hour, at_s)
        inside = [row for row in hour if from_s <= row.at_s < to_s]
        shown = await self._shown.total(lane, from_s, to_s)
        return hour if finding in pinpoint.blame(shown, inside, now_s).findings else None

    async def _shows_later(self, lane: Lane, row: SentRow) -> bool:
        """Whether Stripe shows something that was delivered after the row."""
        async with self._ledger.transaction() as tx:
            at_s = await tx.value("later_delivery", lane.tenant, lane.metric, row.delivered_s, outbox.SETTLE_AFTER_S)
            if at_s is None:
                return False
            minute_s = int(at_s) - int(at_s) % MINUTE_S
            rows = await rows_between(tx, lane, minute_s, minute_s + MINUTE_S)
        seen = await self._shown.total(lane, minute_s, minute_s + MINUTE_S)
        expected = sum(other.amount for other in rows if other.state == "delivered")
        return expected > 0 and seen.amount + seen.blur >= expected

    async def _settle(self, lane: Lane, row: SentRow, now_s: int) -> list[Repair]:
        hour = await self._seen(lane, Finding(row, "arrived"), now_s)
        if hour is None:
            return []
        async with self._ledger.transaction() as tx:
            if not await _still(tx, row, lane, hour):
                return []
            await tx.rows("parked_row_arrived", row.identifier)
            return [await self._done(tx, lane, "settled", row.amount, row.identifier)]

    async def _cancel(self, lane: Lane, row: SentRow, event_name: str, now_s: int) -> list[Repair]:
        """Cancel an earlier attempt that arrived as well; Stripe refuses what it does not have or what is too old."""
        async with self._ledger.transaction() as tx:
            if not await _still(tx, row):
                return []
            ledger_id = str(await tx.value("installation"))
        if row.delivered_s <= now_s - CANCEL_MAX_S:
            return []
        for attempt in range(1, row.attempt):
            name = delta.identifier(ledger_id, row.window, row.number, attempt)
            try:
                with errors():
                    await self._api.v1.billing.meter_event_adjustments.create_async(
                        {"event_name": event_name, "type": "cancel", "cancel": {"identifier": name}},
                        {"idempotency_key": f"{name}-cancel"},
                    )
            except StripeRefused as error:
                log.info("event could not be cancelled", extra=fields(identifier=name, cause=str(error)))
                continue
            async with self._ledger.transaction() as tx:
                return [await self._done(tx, lane, "cancelled", row.amount, name)]
        return []

    async def _done(self, tx: Transaction, lane: Lane, kind: Kind, amount: int, identifier: str = "") -> Repair:
        repair = Repair(tenant=lane.tenant, metric=lane.metric, kind=kind, amount=amount, identifier=identifier)
        detail = {"metric": lane.metric, "kind": kind, "amount": amount, "identifier": identifier}
        await audit.write(tx, actor=self._actor, action="stripe.repair", tenant=lane.tenant, detail=detail)
        log.warning(
            "difference between ledger and Stripe repaired",
            extra=fields(tenant=lane.tenant, metric=lane.metric, kind=kind, amount=amount, identifier=identifier),
        )
        return repair


async def rows_between(tx: Transaction, lane: Lane, from_s: int, to_s: int) -> list[SentRow]:
    """The rows of a lane whose timestamp lies in a span."""
    found = await tx.rows("rows_between", lane.tenant, lane.metric, from_s, to_s)
    return [SentRow(Window(lane.tenant, lane.metric, row[0], row[1]), *row[2:]) for row in found]


async def send_again(
    tx: Transaction, rows: Sequence[SentRow], reason: str, *, span: tuple[int, int] | None = None
) -> None:
    """Give rows of which nothing arrived a new identifier, and wake their lanes, which are locked.

    ``span``: what was summed up to find that out; the whole hour of each if nobody knows.
    """
    summed = {(row.window.tenant, row.window.metric, *(span or _hour(row.at_s))) for row in rows if row.first_sent_s}
    await outbox.mark_summed(tx, sorted(summed))
    ledger_id = str(await tx.value("installation"))
    names = [delta.identifier(ledger_id, row.window, row.number, row.attempt + 1) for row in rows]
    await tx.rows("new_attempts", *_keys(rows), names, [reason] * len(rows))
    await outbox.wake(tx, [(row.window, row.at_s) for row in rows])


async def retry(tx: Transaction, identifier: str, *, actor: str, sure: bool = False) -> SentRow:
    """Send a row that was set aside again, because an operator mended what kept it; NotFound when there is none.

    ``sure``: the operator knows that it did not arrive, which of some rows nobody here does.
    """
    await tx.rows("lock_lanes_of_rows", [identifier])
    found = await tx.row("parked_row", identifier)
    if found is None:
        raise NotFound(f"no row is set aside under {identifier}; see `sidecar stripe parked`")
    row = SentRow(Window(*found[:4]), *found[4:-1])
    if row.first_sent_s and not sure:
        raise Conflict(
            f"nobody knows whether {identifier} arrived: {found['reason']}; compare with Stripe, then say --sure"
        )
    await send_again(tx, [row], "sent again by an operator")
    detail = {"metric": row.window.metric, "identifier": identifier, "amount": row.amount}
    await audit.write(tx, actor=actor, action="stripe.retry", tenant=row.window.tenant, detail=detail)
    return row


async def retry_all(tx: Transaction, tenant: str, *, actor: str, sure: bool = False) -> int:
    """Send everything that was set aside again, of one tenant when given; how many. What may have arrived stays."""
    await tx.rows("lock_parked_lanes", tenant)
    rows = [SentRow(Window(*row[:4]), *row[4:]) for row in await tx.rows("retriable_rows", tenant, sure, RETRIES_MAX)]
    if rows:
        await send_again(tx, rows, "sent again by an operator")
        detail = {"rows": len(rows), "identifiers": [row.identifier for row in rows[:100]]}
        await audit.write(tx, actor=actor, action="stripe.retry_all", tenant=tenant, detail=detail)
    return len(rows)


async def _still(tx: Transaction, row: SentRow, lane: Lane | None = None, hour: Sequence[SentRow] = ()) -> bool:
    """Lock the row's lane; whether nobody works on it and the row, and its hour if given, is as it was seen."""
    free = await tx.value("lock_free_lane", row.window.tenant, row.window.metric)
    if free is False:
        return False
    now = await tx.row("rows_by_identifier", row.identifier)
    if now is None or (now["attempt"], now["state"]) != (row.attempt, row.state):
        return False
    return lane is None or await rows_between(tx, lane, *_hour(row.at_s)) == hour


def _hour(at_s: int) -> tuple[int, int]:
    return at_s - at_s % HOUR_S, at_s - at_s % HOUR_S + HOUR_S


def _keys(rows: Sequence[SentRow]) -> tuple[list[str], list[str], list[int], list[int], list[int]]:
    return (
        [row.window.tenant for row in rows],
        [row.window.metric for row in rows],
        [row.window.period_s for row in rows],
        [row.window.hour_s for row in rows],
        [row.number for row in rows],
    )
