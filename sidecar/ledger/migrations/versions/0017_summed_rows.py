"""Rows of the outbox that a sum of Stripe's was explained with."""

from __future__ import annotations

from pathlib import Path

from sidecar.ledger.migrations.script import run

revision = "0017"
down_revision: str | None = max(
    name for path in Path(__file__).parent.glob("0*.py") if (name := path.name[:4]) < revision
)


def upgrade() -> None:
    run("0017_summed_rows.sql")
