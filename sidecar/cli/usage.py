"""`sidecar usage TENANT`."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import click

from sidecar.cli.target import Target, find, show_json, table, wait, with_json, with_state
from sidecar.control.catalogues import Catalogues
from sidecar.control.report import UsageReport, usage_report


@click.command()
@click.argument("tenant")
@with_state
@with_json
def usage(tenant: str, state: str | None, *, as_json: bool) -> None:
    """Print what TENANT has used, limit by limit, as the ledger has it."""
    report = wait(_report(find(state), tenant))
    if as_json:
        show_json(report)
        return
    click.echo(f"{report.tenant} on plan {report.plan}")
    lines = [
        (
            limit.limit,
            f"{limit.used:f}",
            _bound(limit.included),
            limit.cap,
            _date(limit.period_end),
            limit.status,
        )
        for limit in report.limits
    ]
    table([("LIMIT", "USED", "INCLUDED", "CAP", "UNTIL (UTC)", "STATUS"), *lines])


async def _report(target: Target, tenant: str) -> UsageReport:
    async with target.transaction() as tx:
        return await usage_report(tx, await Catalogues().in_force(tx), tenant, target.clock.wall_s())


def _bound(amount: Decimal | None) -> str:
    return "none" if amount is None else f"{amount:f}"


def _date(at_s: int) -> str:
    try:
        return dt.datetime.fromtimestamp(at_s, dt.UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError):
        return "never"
