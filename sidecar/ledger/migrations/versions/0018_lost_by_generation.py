"""Lease units lost, by the generation in which Redis took them back."""

from __future__ import annotations

from pathlib import Path

from sidecar.ledger.migrations.script import run

revision = "0018"
down_revision: str | None = max(
    name for path in Path(__file__).parent.glob("0*.py") if (name := path.name[:4]) < revision
)


def upgrade() -> None:
    run("0018_lost_by_generation.sql")
