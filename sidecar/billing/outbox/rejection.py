"""What Stripe takes back later: events that it answered with success and then refused in an error report.

Guarantees: what certainly never counted is sent again under a new identifier, or set aside with the reason when that
            cannot help. When the event was sent more than once, nobody knows which of the calls a report is about,
            and when another row was sent again because a sum was explained with this one, the sum may have been the
            other one's: then the summaries tell. The same report twice changes nothing, and nothing does an answer of
            before the report that is recorded after it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sidecar.billing.outbox import outbox
from sidecar.billing.outbox.delta import Window, identifier, identifier_of
from sidecar.billing.outbox.fate import hopeless
from sidecar.billing.outbox.outbox import SETTLE_AFTER_S, Parked
from sidecar.errors import Conflict
from sidecar.ledger.transaction import Transaction
from sidecar.logs import fields

log = logging.getLogger(__name__)

PAUSE_S = 60
PAUSE_MAX_S = 3_600


async def rejected(tx: Transaction, key: str, code: str, message: str) -> bool:
    """Take an error report about an event, named by its idempotency key or identifier.

    False when no row has that identifier (any more). Conflict while the event is being sent again: what comes of that
    is not known yet, so the report is to be taken again later.
    """
    await tx.rows("lock_lanes_of_rows", [identifier_of(key)])
    row = await tx.row("rows_by_identifier", identifier_of(key))
    if row is None:
        return False
    tenant, metric, period_s, hour_s, number, attempt, state, tries, summed = row
    if code == "duplicate_meter_event" or state == "parked":
        return True
    if state == "sending":
        raise Conflict(f"the event {identifier_of(key)} is being sent again; take the report in a few minutes")
    await tx.rows("mark_reported", identifier_of(key))
    window = Window(tenant, metric, period_s, hour_s)
    reason = f"Stripe reported {code}: {message}"
    if tries > 1 or summed:
        await tx.rows("doubt_rows", *_columns([(window, number)]), [reason], SETTLE_AFTER_S)
        await outbox.wake(tx, [(window, 0)])
    elif hopeless(code, ""):
        await tx.rows("park_rows", *_columns([(window, number)]), [reason])
    else:
        await _again(tx, [(window, number, attempt)], reason)
        await tx.rows("rest_lane", tenant, metric, min(PAUSE_MAX_S, PAUSE_S * 2 ** min(attempt, 10)))
    log.warning(
        "Stripe refused an event it had taken",
        extra=fields(tenant=tenant, metric=metric, identifier=identifier_of(key), code=code),
    )
    return True


async def parked(tx: Transaction, tenant: str = "", most: int = 1_000) -> list[Parked]:
    """Rows that were set aside, the oldest first."""
    rows = await tx.rows("parked_rows", tenant, most)
    return [Parked(Window(row[0], row[1], row[2], row[3]), *row[4:]) for row in rows]


async def _again(tx: Transaction, rows: Sequence[tuple[Window, int, int]], reason: str) -> None:
    ledger_id = str(await tx.value("installation"))
    names = [identifier(ledger_id, window, number, attempt + 1) for window, number, attempt in rows]
    columns = _columns([(window, number) for window, number, _ in rows])
    await tx.rows("new_attempts", *columns, names, [reason] * len(rows))


def _columns(rows: Sequence[tuple[Window, int]]) -> tuple[list[str], list[str], list[int], list[int], list[int]]:
    return (
        [window.tenant for window, _ in rows],
        [window.metric for window, _ in rows],
        [window.period_s for window, _ in rows],
        [window.hour_s for window, _ in rows],
        [number for _, number in rows],
    )
