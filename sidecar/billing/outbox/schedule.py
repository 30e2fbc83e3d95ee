"""What a claimed lane does next. Pure.

Guarantees: nothing is sent that Stripe may have and have forgotten, that would lie in a period whose invoice is
            final, that the items that bill it now do not count, or that is too old to be taken. What was never sent
            is moved to where it is billed; what may have arrived is left to the summaries.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from sidecar.billing.outbox.delta import AGE_MAX_S, HOUR_S, Terms, place
from sidecar.billing.outbox.fate import RETRY_MAX_S
from sidecar.billing.outbox.lanes import Work
from sidecar.billing.outbox.outbox import SETTLE_AFTER_S
from sidecar.billing.outbox.row import Row

BLOCKED_PAUSE_MS = 300_000
AHEAD_PAUSE_MS = 1_000  # Stripe's clock is ahead of ours


class Step(Struct, frozen=True):
    """What to do, with which row, and why; ``pause_ms`` before the lane is looked at again."""

    kind: Literal["verify", "settle", "send", "doubt", "move", "blocked", "idle"]
    row: Row | None = None
    reason: str = ""
    pause_ms: int = 0


def next_step(work: Work, close_delay_s: int) -> Step:
    """Decide by what the claim saw."""
    row = work.row
    nobody = ""
    if not work.customer:
        nobody = "the tenant has no customer at Stripe"
    elif not work.meter:
        nobody = "the metric has no meter; run `sidecar stripe setup`"
    if work.distrusted or work.doubtful:
        wait_ms = max(0, work.restored_s + SETTLE_AFTER_S - work.now_s) * 1000 if work.distrusted else 0
        wait_ms = wait_ms or (BLOCKED_PAUSE_MS if nobody else 0)
        return Step("idle", pause_ms=wait_ms) if wait_ms else Step("verify" if work.distrusted else "settle")
    if row is None:
        return Step("idle")
    too_late = _too_late(row, work, close_delay_s)
    if too_late is not None:
        return too_late
    return Step("blocked", row, nobody, BLOCKED_PAUSE_MS) if nobody else Step("send", row)


def _too_late(row: Row, work: Work, close_delay_s: int) -> Step | None:
    """What to do with a row that may not be sent as it is any more."""
    terms = Terms(work.anchor_s, work.interval_months, close_delay_s, work.items_since_s, work.bills_from_s)
    closing = work.now_s >= row.deadline_s - terms.guard_s
    old = work.now_s >= row.at_s + AGE_MAX_S - HOUR_S
    if row.first_sent_s and work.now_s >= row.first_sent_s + RETRY_MAX_S:
        return Step("doubt", row, "no answer within the time in which Stripe remembers an identifier")
    if closing or old:
        return Step("doubt", row, "no answer before its period was closed") if row.first_sent_s else Step("move", row)
    if row.at_s < work.items_since_s:
        where = place(row.window, terms, work.now_s)
        if where is None:
            return Step("idle", pause_ms=AHEAD_PAUSE_MS)
        if where.from_s <= row.at_s <= where.to_s and not where.unbillable:
            return None
        # Sent now it would count for nobody: those items are gone, and the new ones do not look back.
        return (
            Step("doubt", row, "no answer before its items were exchanged") if row.first_sent_s else Step("move", row)
        )
    return None
