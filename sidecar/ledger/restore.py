"""Restore of a shard of Redis after lost state (docs/protocol.md).

Steps, each of which checks that the generation is still the same: merge the ledger's recent windows with max; make
every tenant and key pending, so that the projection which follows rebuilds their limits and brings them back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.errors import StoreUnavailable

if TYPE_CHECKING:
    from sidecar.ledger.shard import CounterRow, ShardTransaction
    from sidecar.store.client import Store
    from sidecar.store.messages import Collected

ROWS_PER_CALL = 500


async def restore(tx: ShardTransaction, store: Store, collected: Collected) -> list[str]:
    """Bring the recent windows of a shard back; returns the writers that counted in them.

    Raises StoreUnavailable when another generation began meanwhile: the next pass starts over.
    """
    return await _bring_back(tx, store, collected, collected.base_hour)


async def catch_up(tx: ShardTransaction, store: Store, collected: Collected) -> None:
    """Bring everything to a data set that grants and is not the one the ledger was filled from.

    Somebody counted in the ledger, or marked as projected, what another server got, as an old primary may in a split
    brain; or the ledger was restored to a time before this generation. Raises StoreUnavailable as ``restore`` does.
    """
    await _bring_back(tx, store, collected, collected.first_direct_hour)


async def _bring_back(tx: ShardTransaction, store: Store, collected: Collected, since_hour: int) -> list[str]:
    rows = await tx.recent_counters(since_hour)
    for first in range(0, len(rows), ROWS_PER_CALL):
        batch = [
            (r.tenant, series(r), r.period_s, r.hour, r.writer, r.amount) for r in rows[first : first + ROWS_PER_CALL]
        ]
        if not await store.merge(tx.shard, collected.generation, batch):
            raise StoreUnavailable("Redis lost its state again during the restore")
    await tx.rows("forget_tenants_projected", tx.shard)
    await tx.rows("forget_keys_projected", tx.shard)
    return list(dict.fromkeys(row.writer for row in rows))


def series(row: CounterRow) -> str:
    """The series of a ledger row, as windows in Redis name it."""
    return f"{row.metric}@{row.scope}" if row.scope else row.metric
