"""`sidecar verify`: journals, Redis and the ledger compared; exit 1 when they differ."""

from __future__ import annotations

import asyncio
import os
import sys

import click

from sidecar.cli.flush import flush_everything
from sidecar.cli.target import Target, find, show_json, table, wait, with_json, with_state
from sidecar.control.catalogues import Catalogues
from sidecar.errors import NotFound
from sidecar.store.client import Store
from sidecar.store.keys import Keyspace
from sidecar.verification import Difference, Verifier

LOOKS = 3
PAUSE_S = 0.5
STORE_TIMEOUT_MS = 5_000


@click.command()
@with_state
@with_json
def verify(state: str | None, *, as_json: bool) -> None:
    """Compare journals, Redis and Postgres; print one row per difference."""
    found = wait(_verify(find(state)))
    if as_json:
        show_json(found)
    elif found:
        head = ("TENANT", "WHAT", "HERE", "AMOUNT", "THERE", "AMOUNT")
        lines = [(d.tenant, d.what, d.left_name, str(d.left), d.right_name, str(d.right)) for d in found]
        table([head, *lines])
    else:
        click.echo("journals, Redis and the ledger agree")
    sys.exit(1 if found else 0)


async def _verify(target: Target) -> list[Difference]:
    """Look until nothing differs, or until the same is different every time."""
    settings = target.settings
    store = Store(
        settings.redis_url,
        Keyspace(settings.redis_prefix, settings.shards),
        target.clock,
        identity=f"verify-{os.getpid()}",
        timeout_ms=STORE_TIMEOUT_MS,
        ca_file=settings.redis_ca_file,
    )
    remaining: set[Difference] | None = None
    try:
        async with target.ledger() as ledger:
            for look in range(LOOKS):
                if look:
                    await asyncio.sleep(PAUSE_S)
                await _quieten(target)
                async with ledger.transaction() as tx:
                    catalogue = await Catalogues().in_force(tx)
                    journals = sorted(target.state.path.rglob("*.journal"))
                    found = await Verifier(store, catalogue, journals, target.clock.wall_s()).differences(tx)
                remaining = set(found) if remaining is None else remaining & set(found)
                if not remaining:
                    return []
    finally:
        await store.close()
    return sorted(remaining or ())


async def _quieten(target: Target) -> None:
    """Have everything counted reach the ledger first, where this machine can ask for it."""
    try:
        await flush_everything(target)
    except NotFound:
        return
