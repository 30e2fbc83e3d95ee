"""Which tenants Redis does not know in their present form, and the marks that it does.

Guarantees: a mark never goes back, whatever the order of marks; a tenant that changed after it was read stays pending.
            The limits kept for the ledger's functions and views are those of the newest mark, written with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.catalogue.model import Catalogue
from sidecar.catalogue.resolve import resolve
from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.ledger.tenants import TenantRow, by_ids
from sidecar.ledger.transaction import Transaction


def snapshot(catalogue: Catalogue, row: TenantRow) -> Snapshot:
    """The snapshot that a tenant's row amounts to; overrides that no longer fit are left out."""
    return resolve(
        catalogue,
        tenant=row.tenant,
        rev=row.rev,
        plan=row.plan,
        status=row.status,
        status_until_s=row.status_until_s,
        parent=row.parent,
        anchor_s=row.anchor_s,
        shadow=row.shadow,
        overrides=row.overrides,
        strict=False,
    )


async def pending(tx: Transaction, shard: int, most: int) -> list[TenantRow]:
    """Tenants of a shard with a rev that is not projected, the longest waiting first."""
    ids = [row[0] for row in await tx.rows("tenants_pending", shard, most)]
    return sorted(await by_ids(tx, ids), key=lambda row: row.rev)


async def mark(tx: Transaction, snapshots: Sequence[Snapshot]) -> None:
    """Record the revs that Redis has, and the limits behind them."""
    # In one order, so that two transactions that mark the same tenants do not wait for each other.
    ordered = sorted(snapshots, key=lambda snapshot: snapshot.tenant)
    marked = {
        row[0]
        for row in await tx.rows(
            "mark_tenants_projected",
            [snapshot.tenant for snapshot in ordered],
            [snapshot.rev for snapshot in ordered],
            [snapshot.interval_months for snapshot in ordered],
        )
    }
    if not marked:
        return
    limits = [
        (snapshot.tenant, limit) for snapshot in ordered if snapshot.tenant in marked for limit in snapshot.limits
    ]
    await tx.rows("drop_tenant_limits", list(marked))
    await _write(tx, limits)


async def _write(tx: Transaction, limits: Sequence[tuple[str, LimitRule]]) -> None:
    await tx.rows(
        "write_tenant_limits",
        [tenant for tenant, _ in limits],
        [limit.name for _, limit in limits],
        [limit.metric for _, limit in limits],
        [limit.period for _, limit in limits],
        [limit.scope for _, limit in limits],
        [limit.included for _, limit in limits],
        [limit.stop for _, limit in limits],
        [limit.beyond for _, limit in limits],
        [limit.shadow for _, limit in limits],
    )


async def pass_over(tx: Transaction, rows: Sequence[TenantRow]) -> None:
    """Leave tenants that no plan fits as they are in Redis, until they or the catalogue change."""
    if rows:
        ids, revs, months = (
            [row.tenant for row in rows],
            [row.rev for row in rows],
            [row.interval_months for row in rows],
        )
        await tx.rows("mark_tenants_projected", ids, revs, months)
