"""Changes that can be finished after a crash, flushes asked of other processes, customers that are no more."""

from __future__ import annotations

from pathlib import Path

from sidecar.ledger.migrations.script import run

revision = "0011"
down_revision: str | None = max(
    name for path in Path(__file__).parent.glob("0*.py") if (name := path.name[:4]) < revision
)


def upgrade() -> None:
    run("0011_changes.sql")
