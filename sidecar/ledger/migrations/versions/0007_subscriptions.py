"""Customers, subscriptions, invoices and received events as Stripe has them."""

from __future__ import annotations

from sidecar.ledger.migrations.script import run

revision = "0007"
down_revision: str | None = "0006"


def upgrade() -> None:
    run("0007_subscriptions.sql")
