"""Folds what was delivered long ago, so that the outbox does not grow with every call that was ever made.

Guarantees: the rows of a window still add up to what was delivered, for every day and every billing period, and the
            next row gets the number after the last one ever given. Only rows that nothing asks for any more are
            touched: Stripe takes no event as old, tells of no error in one, and no sum of a minute is read for them.
            A batch is one short transaction; several processes share the lanes.
Gives up:   identifiers and minutes of single calls that old: they are in Stripe's own records for longer.
"""

from __future__ import annotations

from sidecar.billing.outbox.delta import AGE_MAX_S
from sidecar.catalogue.period import DAY_S
from sidecar.ledger.connection import Ledger

KEPT_S = AGE_MAX_S + 5 * DAY_S
LANES_PER_BATCH = 100
BATCHES_MAX = 20


async def fold(ledger: Ledger, *, batches: int = BATCHES_MAX, lanes: int = LANES_PER_BATCH) -> int:
    """Fold some batches, a day of a lane at a time; how many rows went."""
    went = 0
    for _ in range(batches):
        async with ledger.transaction() as tx:
            looked, gone = (await tx.rows("fold_delivered", KEPT_S, lanes))[0]
        went += int(gone)
        if looked < lanes:
            break
    return went
