"""``sidecar stripe setup/import``: the account at Stripe."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sidecar.billing.shop import setup as setups
from sidecar.billing.shop.difference import Change
from sidecar.billing.shop.setup import Report
from sidecar.billing.subscriptions import importing
from sidecar.billing.subscriptions.importing import AccountMapping, Adopted
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.cli.stripe_account import account
from sidecar.cli.stripe_events import list_events, replay
from sidecar.cli.stripe_reconcile import parked, reconcile, retry
from sidecar.cli.target import Target, actor, find, show_json, table, wait, with_json, with_state
from sidecar.control.catalogues import Catalogues

SIGNS = {"create": "+", "update": "~", "replace": "~", "archive": "-", "unused": "?", "refuse": "!"}


@click.group()
def stripe() -> None:
    """Stripe: what it sells for this installation, and what it knows of it."""


stripe.add_command(list_events)
stripe.add_command(replay)
stripe.add_command(reconcile)
stripe.add_command(parked)
stripe.add_command(retry)


@stripe.command()
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@with_state
@with_json
def setup(state: str | None, *, dry_run: bool, as_json: bool) -> None:
    """Make meters, products and prices at Stripe as the catalogue in force has them. Run again, it changes nothing.

    Exit 1 when something cannot be changed; each such thing is named with its reason, and nothing is done.
    """
    report = wait(_setup(find(state), dry_run=dry_run))
    if as_json:
        show_json({"changes": [_row(change) for change in report.changes], "objects": report.ids, "dry_run": dry_run})
    else:
        _told(report, dry_run=dry_run)
    if report.refused:
        sys.exit(1)


async def _setup(target: Target, *, dry_run: bool) -> Report:
    async with account(target) as api, target.transaction() as tx:
        catalogue = await Catalogues().in_force(tx)
        if dry_run:
            return await setups.difference(tx, api, catalogue)
        return await setups.set_up(tx, api, catalogue, actor=actor())


def _row(change: Change) -> dict[str, object]:
    return {
        "action": change.action,
        "kind": change.kind,
        "name": change.name,
        "id": change.id,
        "reasons": list(change.reasons),
    }


def _told(report: Report, *, dry_run: bool) -> None:
    for change in report.changes:
        if change.action in SIGNS:
            reasons = f": {'; '.join(change.reasons)}" if change.reasons else ""
            id_ = f" ({change.id})" if change.id else ""
            what = f"{change.kind} {change.name}" if change.name else "catalogue"
            click.echo(f"{SIGNS[change.action]} {change.action} {what}{id_}{reasons}")
    kept = sum(change.action == "keep" for change in report.changes)
    done = "would change" if dry_run else "changed"
    click.echo(f"{len(report.effects)} {done}, {kept} as they should be")


@stripe.command("import")
@click.option(
    "--mapping",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV of cus_...,tenant and price_...,plan, or JSON with customers and prices.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@with_state
@with_json
def import_(mapping: Path | None, state: str | None, *, dry_run: bool, as_json: bool) -> None:
    """Adopt the customers and subscriptions that the account has: those whose metadata or the mapping names a tenant.

    A tenant keeps the customer it has. What could not be mapped is printed with its reason.
    """
    known = (
        importing.mapping_of(mapping.read_text("utf-8", errors="replace"), str(mapping))
        if mapping is not None
        else AccountMapping()
    )
    found = wait(_import(find(state), known, dry_run=dry_run))
    if as_json:
        show_json({"customers": found, "dry_run": dry_run})
    else:
        _listed(found)


async def _import(target: Target, mapping: AccountMapping, *, dry_run: bool) -> list[Adopted]:
    in_force = Catalogues().in_force
    async with account(target) as api, target.ledger() as ledger:
        async with ledger.transaction() as tx:
            catalogue = await in_force(tx)
        mirror = Mirror(ledger, api, in_force, target.clock)
        return await importing.adopt_account(mirror, catalogue, mapping, actor=actor(), dry_run=dry_run)


def _listed(found: list[Adopted]) -> None:
    rows: list[tuple[str, ...]] = [("CUSTOMER", "TENANT", "SUBSCRIPTION", "PLAN", "WHAT")]
    for one in found:
        what = f"{one.action}: {one.reason}" if one.reason else one.action
        rows.append((one.customer, one.tenant, "", "", what + (", new tenant" if one.creates else "")))
        rows += [
            ("", "", item.id, item.plan, f"{item.status}{f': {item.reason}' if item.reason else ''}")
            for item in one.subscriptions
        ]
    table(rows)
    adopted = sum(one.action in ("link", "known") for one in found)
    click.echo(f"{adopted} of {len(found)} customers belong to tenants")
