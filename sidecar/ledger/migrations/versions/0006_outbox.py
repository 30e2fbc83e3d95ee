"""The outbox grows lanes, fates and the means to settle what is in doubt."""

from __future__ import annotations

from sidecar.ledger.migrations.script import run

revision = "0006"
down_revision: str | None = "0005"


def upgrade() -> None:
    run("0006_outbox.sql")
