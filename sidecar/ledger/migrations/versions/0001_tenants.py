"""Tenants, keys, plans and the audit log."""

from __future__ import annotations

from sidecar.ledger.migrations.script import run

revision = "0001"
down_revision: str | None = None


def upgrade() -> None:
    run("0001_tenants.sql")
