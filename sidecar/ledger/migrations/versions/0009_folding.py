"""Counters of windows that are long over, folded into the rows of their totals."""

from __future__ import annotations

from sidecar.ledger.migrations.script import run

revision = "0009"
down_revision: str | None = "0008"


def upgrade() -> None:
    run("0009_folding.sql")
