"""Folds counters of windows that are long over into the rows of their totals (docs/ledger.md).

Guarantees: the ledger says the same before and after, of every writer; a batch takes effect as a whole or not at all.
Gives up:   haste. Batches are small and far between, so that passes go first.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.ledger.connection import Ledger
    from sidecar.telemetry import FlusherCounters

ROWS_PER_BATCH = 5_000
PAUSE_S = 0.1


async def fold(ledger: Ledger, locks: Sequence[asyncio.Lock], counters: FlusherCounters) -> None:
    """Fold whatever may be folded; ``locks`` are those of this process, one a shard.

    A shard that another flusher has at the moment is left to the next call.
    """
    async with ledger.transaction() as tx:
        waiting = [int(row[0]) for row in await tx.rows("shards_to_fold", tx.shards)]
    for shard in waiting:
        while True:
            async with locks[shard], ledger.shard(shard) as transaction:
                folded = await transaction.fold(ROWS_PER_BATCH) if transaction is not None else 0
            counters.folded += folded
            if not folded:
                break
            await asyncio.sleep(PAUSE_S)
