"""Usage that nobody pays for, metrics that ever were, and deliveries that are folded."""

from __future__ import annotations

from sidecar.ledger.migrations.script import run

revision = "0010"
down_revision: str | None = "0009"


def upgrade() -> None:
    run("0010_unpaid_usage.sql")
