"""`sidecar tenant put/show/list/suspend/activate/override`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable

import click

from sidecar.cli.target import (
    Result,
    Target,
    actor,
    find,
    parse_json_value,
    show_json,
    table,
    wait,
    with_json,
    with_state,
)
from sidecar.control import accounts
from sidecar.control.catalogues import Catalogues
from sidecar.ledger import tenants
from sidecar.ledger.tenants import STATUSES, TenantRow
from sidecar.ledger.transaction import Transaction

PAGE = 500


@click.group()
def tenant() -> None:
    """Tenants: who may use what."""


@tenant.command()
@click.argument("name", metavar="ID")
@click.option("--plan", required=True, help="Plan of the catalogue in force.")
@click.option("--parent", help="Tenant whose limits apply too.")
@click.option(
    "--anchor",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Start of a billing period (UTC) [default: calendar months].",
)
@click.option("--shadow/--no-shadow", default=None, help="Decide and report, but always allow.")
@click.option("--status", type=click.Choice(STATUSES))
@click.option("--until", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="End of a trial or grace (UTC).")
@with_state
@with_json
def put(  # noqa: PLR0913 - one option each
    name: str,
    plan: str,
    parent: str | None,
    anchor: dt.datetime | None,
    shadow: bool | None,  # noqa: FBT001 - how click gives it
    status: str | None,
    until: dt.datetime | None,
    state: str | None,
    *,
    as_json: bool,
) -> None:
    """Create a tenant, or change what is given of one; what is not given stays."""

    async def work(tx: Transaction) -> TenantRow:
        accounts.known_plan(await Catalogues().in_force(tx), plan)
        row = await tenants.put(
            tx, name, plan=plan, actor=actor(), parent=parent, anchor_s=_seconds(anchor), shadow=shadow, status=status
        )
        if until is None:
            return row
        return await tenants.set_status(tx, name, row.status, actor=actor(), until_s=_seconds(until) or 0)

    _told(wait(_in_ledger(find(state), work)), as_json=as_json)


@tenant.command()
@click.argument("name", metavar="ID")
@with_state
@with_json
def show(name: str, state: str | None, *, as_json: bool) -> None:
    """Print everything about a tenant."""
    row = wait(_in_ledger(find(state), lambda tx: tenants.show(tx, name)))
    if as_json:
        show_json(row)
        return
    table(
        [
            ("tenant", row.tenant),
            ("plan", row.plan),
            ("status", row.status + (f" until {_date(row.status_until_s)}" if row.status_until_s else "")),
            ("parent", row.parent or "none"),
            ("billing anchor", _date(row.anchor_s) if row.anchor_s else "none: calendar months"),
            ("shadow", "yes" if row.shadow else "no"),
            ("overrides", str(row.overrides or "none")),
            ("created", _date(row.created_s)),
        ]
    )


@tenant.command("list")
@click.option("--plan", default="", help="Only tenants of this plan.")
@click.option("--status", default="", type=click.Choice(["", *STATUSES]), help="Only tenants with this status.")
@with_state
@with_json
def list_(plan: str, status: str, state: str | None, *, as_json: bool) -> None:
    """Print all tenants in the order of their ids."""
    rows = wait(_in_ledger(find(state), lambda tx: _all(tx, plan, status)))
    if as_json:
        show_json(rows)
    else:
        table([("TENANT", "PLAN", "STATUS"), *((row.tenant, row.plan, row.status) for row in rows)])


@tenant.command()
@click.argument("name", metavar="ID")
@click.option("--reason", default="", help="Written into the audit log.")
@with_state
@with_json
def suspend(name: str, reason: str, state: str | None, *, as_json: bool) -> None:
    """Deny every request of a tenant from the next second on."""
    row = wait(
        _in_ledger(find(state), lambda tx: tenants.set_status(tx, name, "suspended", actor=actor(), reason=reason))
    )
    _told(row, as_json=as_json)


@tenant.command()
@click.argument("name", metavar="ID")
@click.option("--reason", default="", help="Written into the audit log.")
@with_state
@with_json
def activate(name: str, reason: str, state: str | None, *, as_json: bool) -> None:
    """Let a tenant use the API again, whatever its status was."""
    row = wait(_in_ledger(find(state), lambda tx: tenants.set_status(tx, name, "active", actor=actor(), reason=reason)))
    _told(row, as_json=as_json)


@tenant.command()
@click.argument("name", metavar="ID")
@click.argument("path")
@click.argument("value", required=False)
@click.option("--clear", is_flag=True, help="Take the override back; the plan's own value holds again.")
@with_state
@with_json
def override(name: str, path: str, value: str | None, state: str | None, *, clear: bool, as_json: bool) -> None:
    """Change one value of a tenant's plan: `override acme limits.api_calls 5000`, `... limits.api_calls.cap hard`,
    `... features.sso true`. `null` is unlimited.
    """  # noqa: D205 - the whole of it is the command's help
    if clear is (value is not None):
        raise click.UsageError("give a VALUE, or --clear")

    async def work(tx: Transaction) -> TenantRow:
        catalogue = await Catalogues().in_force(tx)
        wanted = None if value is None else parse_json_value(value)
        return await accounts.override(tx, catalogue, name, path, wanted, actor=actor(), clear=clear)

    _told(wait(_in_ledger(find(state), work)), as_json=as_json)


async def _in_ledger(target: Target, work: Callable[[Transaction], Awaitable[Result]]) -> Result:
    async with target.transaction() as tx:
        return await work(tx)


async def _all(tx: Transaction, plan: str, status: str) -> list[TenantRow]:
    found: list[TenantRow] = []
    while page := await tenants.page(tx, after=found[-1].tenant if found else "", most=PAGE, plan=plan, status=status):
        found += page
    return found


def _told(row: TenantRow, *, as_json: bool) -> None:
    if as_json:
        show_json(row)
    else:
        click.echo(f"{row.tenant} is on plan {row.plan}, {row.status}")


def _seconds(at: dt.datetime | None) -> int | None:
    return None if at is None else int(at.replace(tzinfo=dt.UTC).timestamp())


def _date(at_s: int) -> str:
    return dt.datetime.fromtimestamp(at_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
