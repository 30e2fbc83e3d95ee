"""What follows from a ledger that is older than Stripe: it was restored from a backup.

Guarantees: from this transaction on nothing is sent for these tenants before their totals at Stripe were read, and
            never again under an identifier that Stripe may know from the time that was lost.
"""

from __future__ import annotations

from sidecar.ledger.transaction import Transaction


async def distrust(tx: Transaction, *, shard: int = -1, tenant: str = "") -> None:
    """Make this another ledger, and compare a shard's tenants, or one, with Stripe before they are billed again.

    Rows that were not delivered are dropped; what they stood for is decided anew after the comparison.
    """
    await tx.rows("renew_ledger")
    await tx.rows("forget_undelivered", shard, tenant)
    await tx.rows("distrust_customers", shard, tenant)
    await tx.rows("rest_lanes", shard, tenant)
