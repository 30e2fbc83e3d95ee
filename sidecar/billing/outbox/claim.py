"""One claim of a forwarder: lanes, what each has to do, and when its calls may be made.

Guarantees: all in one transaction, so that a row is known to be about to be sent before anybody sends it; what needs no
            call (leaving a row to the summaries, moving one to another time) is done in it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from msgspec import Struct

from sidecar.billing.outbox import delta, lanes, outbox
from sidecar.billing.outbox.delta import Terms
from sidecar.billing.outbox.lanes import Pace, Release, Work
from sidecar.billing.outbox.row import Row
from sidecar.billing.outbox.schedule import Step, next_step
from sidecar.ledger.transaction import Transaction
from sidecar.logs import fields

log = logging.getLogger(__name__)

CALLS = {"settle": 1, "verify": 10}  # of Stripe's summaries: an hour or a few; 35 days


class ForwarderTerms(Struct, frozen=True):
    """Settings of the forwarder."""

    interval_s: int
    close_delay_s: int
    calls_per_s: int
    bulk: bool = False


class Batch(Struct):
    """Rows to send at a pace, and other work. Claimed at ``began_ms``; nothing is called after ``until_ms``."""

    sends: list[tuple[Work, Row]]
    others: list[tuple[Work, Step]]
    pace: Pace
    began_ms: int = 0
    until_ms: int = 0


async def claim(
    tx: Transaction, token: str, most: int, terms: ForwarderTerms, *, tenant: str = "", per_call: int = 1
) -> Batch | None:
    """Claim lanes that have something to do, of one tenant when given; None when there are none."""
    found = await lanes.claim(tx, token, most, tenant)
    if not found:
        return None
    steps = [(work, next_step(work, terms.close_delay_s)) for work in found]
    sends = [(work, step.row) for work, step in steps if step.kind == "send" and step.row is not None]
    others = [(work, step) for work, step in steps if step.kind in ("verify", "settle")]
    await _at_once(tx, token, steps, terms)
    await lanes.begin(tx, [row for _, row in sends])
    calls = -(-len(sends) // per_call) + sum(CALLS[step.kind] for _, step in others)
    return Batch(sends, others, await lanes.reserve(tx, calls, terms.calls_per_s) if calls else Pace(0, 0, 1000))


async def _at_once(tx: Transaction, token: str, steps: Sequence[tuple[Work, Step]], terms: ForwarderTerms) -> None:
    """Do what needs no call, and give those lanes back."""
    doubted = [(step.row, step.reason) for _, step in steps if step.kind == "doubt" and step.row is not None]
    await lanes.doubt(tx, [row for row, _ in doubted], [reason for _, reason in doubted])
    for row, reason in doubted:
        log.warning(
            "delta in doubt; the summaries will tell",
            extra=fields(tenant=row.window.tenant, metric=row.window.metric, identifier=row.identifier, cause=reason),
        )
    blocked = [(step.row, step.reason) for _, step in steps if step.kind == "blocked" and step.row is not None]
    await lanes.explain(tx, [row for row, _ in blocked], [reason for _, reason in blocked])
    await _move(tx, [(work, step.row) for work, step in steps if step.kind == "move" and step.row is not None], terms)
    done = [(work, step) for work, step in steps if step.kind in ("doubt", "move", "blocked", "idle")]
    await lanes.release(
        tx, [Release(token, work.tenant, work.metric, work.failures, step.pause_ms) for work, step in done]
    )


async def _move(tx: Transaction, moved: Sequence[tuple[Work, Row]], terms: ForwarderTerms) -> None:
    """Give rows that were never sent the timestamp that they would get now."""
    placed = []
    unpaid = []
    for work, row in moved:
        periods = Terms(work.anchor_s, work.interval_months, terms.close_delay_s, work.items_since_s, work.bills_from_s)
        where = delta.place(row.window, periods, work.now_s)
        if where is not None and where.unbillable:
            unpaid.append(row)
        elif where is not None:
            placed.append((row, where))
    await lanes.write_off(tx, unpaid)
    taken = await outbox.minutes_taken(tx, [(row.window, where) for row, where in placed])
    moments = []
    for row, where in placed:
        minutes = taken[row.window.tenant, row.window.metric]
        at_s = delta.moment(where, minutes)
        minutes.add(at_s // delta.MINUTE_S)
        moments.append((at_s, where))
    await lanes.move(tx, [row for row, _ in placed], moments)
