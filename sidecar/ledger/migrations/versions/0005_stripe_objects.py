"""Ids of what `sidecar stripe setup` made at Stripe."""

from __future__ import annotations

from sidecar.ledger.migrations.script import run

revision = "0005"
down_revision: str | None = "0004"


def upgrade() -> None:
    run("0005_stripe_objects.sql")
