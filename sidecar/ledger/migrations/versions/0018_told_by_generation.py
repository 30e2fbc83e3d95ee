"""Lease units that each of two data sets of Redis told of."""

from __future__ import annotations

from pathlib import Path

from sidecar.ledger.migrations.script import run

revision = "0018"
down_revision: str | None = max(
    name for path in Path(__file__).parent.glob("0*.py") if (name := path.name[:4]) < revision
)


def upgrade() -> None:
    run("0018_told_by_generation.sql")
