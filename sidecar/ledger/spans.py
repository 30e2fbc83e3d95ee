"""Totals over spans of hours: what a limit has used, as the ledger knows it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from sidecar.ledger.transaction import Transaction


class Span(Struct, frozen=True):
    """Windows to sum: of the tenant as a whole (``limit`` empty), or of each scope of a scoped limit.

    Hours with ``from_hour <= hour < before_hour``; only those of one billing period when ``period_s`` is given.
    """

    tenant: str
    metric: str
    limit: str
    from_hour: int
    before_hour: int
    period_s: int | None = None


class SpanTotal(Struct, frozen=True):
    """The sum of one scope of ``spans[index]``; scope is empty for the tenant as a whole."""

    index: int
    scope: str
    amount: int


async def totals(tx: Transaction, spans: Sequence[Span]) -> list[SpanTotal]:
    """Sum the windows of many spans in one round trip.

    The tenant as a whole always has its row, if only of 0; scopes without windows have none.
    """
    rows = await tx.rows(
        "span_totals",
        [span.tenant for span in spans],
        [span.metric for span in spans],
        [span.limit for span in spans],
        [span.from_hour for span in spans],
        [span.before_hour for span in spans],
        [span.period_s for span in spans],
    )
    return [SpanTotal(*row) for row in rows]
