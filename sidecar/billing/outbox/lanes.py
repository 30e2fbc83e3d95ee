"""Lanes: one for each customer and meter, worked on by one forwarder at a time; and the pace of all of them together.

Guarantees: at most one call of a lane is under way while claims are kept; that a row is about to be sent is committed
            before it is; what came of it is written only by who still has the claim, but for a delivery, which is a
            fact whoever saw it. Whoever dies leaves a claim that ends by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from sidecar.billing.outbox.delta import Place, Window
from sidecar.billing.outbox.fate import Fate
from sidecar.billing.outbox.outbox import SETTLE_AFTER_S, UNBILLABLE
from sidecar.billing.outbox.row import Row, keys
from sidecar.ledger.transaction import Transaction

CLAIM_S = 150


class Work(Struct, frozen=True):
    """A claimed lane: whose it is, and what it has to do."""

    tenant: str
    metric: str
    claim: str
    failures: int
    customer: str
    meter: str
    event_name: str
    now_s: int
    anchor_s: int
    interval_months: int
    items_since_s: int
    bills_from_s: int
    distrusted: bool
    restored_s: int
    doubtful: bool
    row: Row | None


class Pace(Struct, frozen=True):
    """Slots of a number of calls: when the first one is, from now, and how far apart they are."""

    first_us: int
    step_us: int
    permille: int


class Release(Struct, frozen=True):
    """A lane that is given back, not to be tried again within ``pause_ms``."""

    claim: str
    tenant: str
    metric: str
    failures: int = 0
    pause_ms: int = 0


async def claim(tx: Transaction, token: str, most: int, tenant: str = "") -> list[Work]:
    """Claim lanes that have something to do, those with the earliest deadline first."""
    claimed = {(row[0], row[1]): row[2] for row in await tx.rows("claim_lanes", token, most, CLAIM_S, tenant)}
    if not claimed:
        return []
    found = await tx.rows("lane_work", [lane[0] for lane in claimed], [lane[1] for lane in claimed])
    return [_work(row, token, claimed[row["tenant"], row["metric"]]) for row in found]


def _work(row: Any, token: str, failures: int) -> Work:
    tenant, metric = row["tenant"], row["metric"]
    sendable = None
    if row["number"] is not None:
        sendable = Row(
            Window(tenant, metric, row["period_s"], row["hour_s"]),
            *(row[name] for name in Row.__struct_fields__[1:]),
        )
    seen = {name: row[name] for name in Work.__struct_fields__[4:-1]}
    return Work(tenant, metric, token, failures, **seen, row=sendable)


async def begin(tx: Transaction, rows: Sequence[Row]) -> None:
    """Record that these rows are about to be sent."""
    if rows:
        await tx.rows("begin_sending", *keys(rows))


async def doubt(tx: Transaction, rows: Sequence[Row], reasons: Sequence[str]) -> None:
    """Leave rows to the summaries."""
    if rows:
        await tx.rows("doubt_rows", *keys(rows), list(reasons), SETTLE_AFTER_S)


async def explain(tx: Transaction, rows: Sequence[Row], reasons: Sequence[str]) -> None:
    """Say why rows that wait cannot be sent for now."""
    if rows:
        await tx.rows("explain_rows", *keys(rows), list(reasons))


async def move(tx: Transaction, rows: Sequence[Row], moments: Sequence[tuple[int, Place]]) -> None:
    """Give rows that were never sent another timestamp, and what comes with its place."""
    if rows:
        await tx.rows(
            "move_rows",
            *keys(rows),
            [at_s for at_s, _ in moments],
            [where.deadline_s for _, where in moments],
            [where.late for _, where in moments],
        )


async def write_off(tx: Transaction, rows: Sequence[Row]) -> None:
    """Set rows aside for good: nobody pays for them, and Stripe takes no events of their time any more."""
    if rows:
        await tx.rows("write_off_rows", *keys(rows), UNBILLABLE)


async def reserve(tx: Transaction, calls: int, calls_per_s: int) -> Pace:
    """Take the next free slots for a number of calls."""
    row = await tx.row("reserve_pace", calls, calls_per_s)
    return Pace(*row) if row is not None else Pace(0, 0, 1000)


async def record(tx: Transaction, fates: Sequence[Fate], releases: Sequence[Release]) -> None:
    """Write what became of rows, and give their lanes back."""
    if not releases:
        return
    locked = await tx.rows(
        "lock_lanes", [r.tenant for r in releases], [r.metric for r in releases], [r.claim for r in releases]
    )
    ours = {(tenant, metric): mine for tenant, metric, mine in locked}
    if fates:
        await tx.rows(
            "record_fates",
            *keys([fate.row for fate in fates]),
            [fate.row.identifier for fate in fates],
            [fate.state for fate in fates],
            [fate.reason for fate in fates],
            [int(fate.kept) for fate in fates],
            [fate.no_effect and not fate.row.first_sent_s for fate in fates],
            [ours.get((fate.row.window.tenant, fate.row.window.metric), False) for fate in fates],
            [fate.row.at_s for fate in fates],
            SETTLE_AFTER_S,
        )
    await release(tx, releases)


async def release(tx: Transaction, releases: Sequence[Release]) -> None:
    """Give lanes back; those that somebody else has claimed by now stay theirs."""
    if releases:
        await tx.rows(
            "release_lanes",
            [r.claim for r in releases],
            [r.tenant for r in releases],
            [r.metric for r in releases],
            [r.failures for r in releases],
            [r.pause_ms for r in releases],
        )


async def still_mine(tx: Transaction, work: Work) -> bool:
    """Lock a claimed lane, and see whether it is still claimed by the caller."""
    locked = await tx.rows("lock_lanes", [work.tenant], [work.metric], [work.claim])
    return bool(locked and locked[0][2])
