"""`sidecar migrate`."""

from __future__ import annotations

import click

from sidecar.cli.target import actor, find, wait, with_state
from sidecar.errors import SettingsInvalid
from sidecar.ledger import migrate as ledger_migrate


@click.command()
@with_state
def migrate(state: str | None) -> None:
    """Bring Postgres to the current schema."""
    target = find(state)
    if not target.settings.postgres_dsn:
        raise SettingsInvalid("SIDECAR_POSTGRES_DSN (or _FILE) is needed to migrate")
    revision = wait(ledger_migrate.migrate(target.settings.postgres_dsn, actor=actor()))
    click.echo(f"Postgres is at revision {revision}")
