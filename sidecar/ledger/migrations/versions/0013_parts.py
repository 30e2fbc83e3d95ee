"""Roles of Postgres for the flusher and for control, each with the rights of its part alone."""

from __future__ import annotations

from pathlib import Path

from sidecar.ledger.migrations.script import run

revision = "0013"
down_revision: str | None = max(
    name for path in Path(__file__).parent.glob("0*.py") if (name := path.name[:4]) < revision
)


def upgrade() -> None:
    run("0013_parts.sql")
