"""`sidecar verify`: journals, Redis, the ledger and Stripe compared; exit 1 when they differ.

Exit 2: they could not be compared, which says nothing about whether they agree.
"""

from __future__ import annotations

import asyncio
import sys

import click

from sidecar.billing.reconciliation.reconcile import Comparison
from sidecar.billing.reconciliation.shown import Shown
from sidecar.cli.flush import flush_everything
from sidecar.cli.stripe_account import account, has_account
from sidecar.cli.target import Target, find, show_json, table, wait, with_json, with_state
from sidecar.control.catalogues import Catalogues
from sidecar.errors import NotFound, SidecarError, StripeUnavailable
from sidecar.verification import Difference, Verifier, stripe_differences

LOOKS = 3
PAUSE_S = 0.5
STORE_TIMEOUT_MS = 5_000
ALONE = "journals, Redis and the ledger agree"


@click.command()
@with_state
@with_json
def verify(state: str | None, *, as_json: bool) -> None:
    """Compare journals, Redis, Postgres and, when there is an account, Stripe; print one row per difference."""
    try:
        target = find(state)
        found = wait(_verify(target))
    except SidecarError as error:
        click.echo(f"sidecar: could not compare: {error}", err=True)
        sys.exit(2)
    if as_json:
        show_json(found)
    elif found:
        head = ("TENANT", "WHAT", "HERE", "AMOUNT", "THERE", "AMOUNT")
        lines = [(d.tenant, d.what, d.left_name, str(d.left), d.right_name, str(d.right)) for d in found]
        table([head, *lines])
    else:
        click.echo("journals, Redis, the ledger and Stripe agree" if has_account(target) else ALONE)
    sys.exit(1 if found else 0)


async def _verify(target: Target) -> list[Difference]:
    found = await _here(target)
    if has_account(target):
        async with account(target) as api, target.ledger() as ledger:
            try:
                found += await stripe_differences(Comparison(ledger, Shown(api)))
            except StripeUnavailable:
                if not found:  # what differs here is told all the same
                    raise
    return found


async def _here(target: Target) -> list[Difference]:
    """Look until nothing differs, or until the same is different every time."""
    store = target.store("verify", STORE_TIMEOUT_MS)
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
