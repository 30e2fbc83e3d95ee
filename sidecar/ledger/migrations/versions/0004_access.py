"""Periods, functions and views for people, roles and row-level security."""

from __future__ import annotations

from sidecar.ledger.migrations.script import run

revision = "0004"
down_revision: str | None = "0003"


def upgrade() -> None:
    run("0004_access.sql")
