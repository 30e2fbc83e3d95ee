"""`sidecar key create/revoke/list`."""

from __future__ import annotations

import click

from sidecar.cli.target import Target, actor, find, show_json, table, wait, with_json, with_state
from sidecar.ledger import keys
from sidecar.ledger.keys import KeyRow, NewKey


@click.group()
def key() -> None:
    """API keys: shown once, stored as their SHA-256."""


@key.command()
@click.argument("tenant")
@click.option("--name", default="", help="What the key is for.")
@with_state
@with_json
def create(tenant: str, name: str, state: str | None, *, as_json: bool) -> None:
    """Make a key for TENANT and print it; nobody can print it again."""
    made = wait(_create(find(state), tenant, name))
    if as_json:
        show_json({"key": made.secret, "sha256": made.row.sha256, "tenant": made.row.tenant})
    else:
        click.echo(made.secret)


@key.command()
@click.argument("key")
@with_state
@with_json
def revoke(key: str, state: str | None, *, as_json: bool) -> None:
    """Revoke a key, named by itself, its SHA-256 or a beginning of that; gateways refuse it within a second."""
    row = wait(_revoke(find(state), key))
    if as_json:
        show_json(row)
    else:
        click.echo(f"key {row.sha256[:16]} of {row.tenant} is revoked")


@key.command("list")
@click.argument("tenant")
@with_state
@with_json
def list_(tenant: str, state: str | None, *, as_json: bool) -> None:
    """Print the keys of TENANT, without the keys themselves."""
    rows = wait(_list(find(state), tenant))
    if as_json:
        show_json(rows)
    else:
        lines = [(row.sha256[:16], row.prefix, row.name, "revoked" if row.revoked_s else "valid") for row in rows]
        table([("SHA-256", "BEGINS", "NAME", "STATUS"), *lines])


async def _create(target: Target, tenant: str, name: str) -> NewKey:
    async with target.transaction() as tx:
        return await keys.create(tx, tenant, actor=actor(), name=name)


async def _revoke(target: Target, key: str) -> KeyRow:
    async with target.transaction() as tx:
        return await keys.revoke(tx, key, actor=actor())


async def _list(target: Target, tenant: str) -> list[KeyRow]:
    async with target.transaction() as tx:
        return await keys.of_tenant(tx, tenant)
