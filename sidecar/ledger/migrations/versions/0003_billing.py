"""What billing keeps: customers, invoices, credits, the outbox."""

from __future__ import annotations

from sidecar.ledger.migrations.script import run

revision = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    run("0003_billing.sql")
