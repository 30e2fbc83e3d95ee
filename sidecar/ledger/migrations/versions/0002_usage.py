"""Counters, windows and what else is known of usage."""

from __future__ import annotations

from sidecar.ledger.migrations.script import run

revision = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    run("0002_usage.sql")
