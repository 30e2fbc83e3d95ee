"""What the comparison of ledger and Stripe found."""

from __future__ import annotations

from sidecar.ledger.migrations.script import run

revision = "0008"
down_revision: str | None = "0007"


def upgrade() -> None:
    run("0008_reconciliation.sql")
