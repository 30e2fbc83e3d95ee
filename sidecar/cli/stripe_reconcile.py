"""``sidecar stripe reconcile/parked/retry``: what differs between the ledger and Stripe, and what to do about it."""

from __future__ import annotations

import datetime as dt
import sys
from decimal import Decimal

import click

from sidecar.billing.outbox import rejection
from sidecar.billing.outbox.outbox import Parked
from sidecar.billing.reconciliation import mending
from sidecar.billing.reconciliation.drift import Line
from sidecar.billing.reconciliation.reconciler import Reconciler, Report
from sidecar.catalogue.amount import to_decimal
from sidecar.cli.stripe_account import account
from sidecar.cli.target import Target, actor, find, show_json, table, wait, with_json, with_state
from sidecar.errors import NotFound
from sidecar.ledger import metrics
from sidecar.ledger.transaction import Transaction

PARKED_MAX = 1_000
Scales = dict[str, int]


@click.command()
@click.option("--tenant", default="", help="Compare one tenant only.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="First day of UTC; by default 35 days ago.")
@click.option("--repair", is_flag=True, help="Repair what can be repaired safely.")
@with_state
@with_json
def reconcile(
    tenant: str,
    since: dt.datetime | None,
    state: str | None,
    *,
    repair: bool,
    as_json: bool,
) -> None:
    """Compare ledger and outbox with Stripe's meters, per tenant, metric, day and billing period.

    Exit 1 when something is left that nothing on its way explains.
    """
    since_s = None if since is None else int(since.replace(tzinfo=dt.UTC).timestamp())
    report, scales = wait(_reconcile(find(state), tenant, since_s, repair=repair))
    if as_json:
        show_json(_document(report, scales))
    else:
        _told(report, scales)
    sys.exit(1 if report.bad else 0)


@click.command()
@click.option("--tenant", default="", help="Those of one tenant only.")
@with_state
@with_json
def parked(tenant: str, state: str | None, *, as_json: bool) -> None:
    """List usage that was set aside because Stripe would not take it, with the reason."""
    found, scales = wait(_parked(find(state), tenant))
    rows = [_parked_row(item, scales) for item in found]
    if as_json:
        show_json(rows)
    elif rows:
        head = ("IDENTIFIER", "TENANT", "METRIC", "HOUR", "AMOUNT", "REASON")
        names = ("identifier", "tenant", "metric", "hour", "amount", "reason")
        table([head, *(tuple(str(row[name]) for name in names) for row in rows)])
    else:
        click.echo("nothing is set aside")


@click.command()
@click.argument("identifier", required=False)
@click.option("--all", "everything", is_flag=True, help="Everything that was set aside, of one tenant when given.")
@click.option("--tenant", default="", help="With --all: those of one tenant only.")
@click.option("--sure", is_flag=True, help="It is certain that Stripe does not have it.")
@with_state
def retry(identifier: str | None, tenant: str, state: str | None, *, everything: bool, sure: bool) -> None:
    """Send usage that was set aside again, after its cause was mended; under a new identifier."""
    if bool(identifier) == everything:
        raise click.UsageError("name an IDENTIFIER, or say --all")
    count, left = wait(_retry(find(state), identifier or "", tenant, sure=sure))
    click.echo(f"{count} will be sent again")
    if left:
        click.echo(f"{left} may have arrived and stay: compare them with Stripe, then retry each with --sure")
        sys.exit(1)


async def _reconcile(target: Target, tenant: str, since_s: int | None, *, repair: bool) -> tuple[Report, Scales]:
    async with account(target) as api, target.ledger() as ledger:
        async with ledger.transaction() as tx:
            if tenant and await tx.row("customer_of", tenant) is None:
                raise NotFound(f"tenant {tenant!r} has no customer at Stripe, so nothing of it is billed")
            scales = await _scales(tx)
        reconciler = Reconciler(ledger, api, target.clock)
        report = await reconciler.run(tenant=tenant, since_s=since_s, repair=repair, actor=actor(), asked=repair)
    return report, scales


async def _parked(target: Target, tenant: str) -> tuple[list[Parked], Scales]:
    async with target.transaction() as tx:
        return await rejection.parked(tx, tenant, PARKED_MAX), await _scales(tx)


async def _retry(target: Target, identifier: str, tenant: str, *, sure: bool) -> tuple[int, int]:
    """How many are sent again, and how many are left since nobody knows whether they arrived."""
    async with target.transaction() as tx:
        if identifier:
            await mending.retry(tx, identifier, actor=actor(), sure=sure)
            return 1, 0
        found = await mending.retry_all(tx, tenant, actor=actor(), sure=sure)
        left = 0 if sure else len(await rejection.parked(tx, tenant, PARKED_MAX))
        return found, left


async def _scales(tx: Transaction) -> Scales:
    return {name: metric.scale for name, metric in (await metrics.known(tx)).items()}


def _document(report: Report, scales: Scales) -> dict[str, object]:
    lines = [_line(line, scales) for line in report.lines]
    return {
        "lanes": report.lanes,
        "unexplained": report.bad,
        "days": [line for line in lines if "day" in line],
        "periods": [line for line in lines if "period" in line],
        "unread": [{"tenant": one.tenant, "metric": one.metric, "cause": one.cause} for one in report.unread],
        "repairs": [
            {
                "tenant": one.tenant,
                "metric": one.metric,
                "kind": one.kind,
                "amount": to_decimal(one.amount, scales.get(one.metric, 0)),
                "identifier": one.identifier,
            }
            for one in report.repairs
        ],
    }


def _line(line: Line, scales: Scales) -> dict[str, object]:
    def units(amount: int) -> Decimal:
        return to_decimal(amount, scales.get(line.metric, 0))

    return {
        "tenant": line.tenant,
        "metric": line.metric,
        line.span: _date(line.from_s, whole_day=line.span == "day"),
        "ledger": units(line.ledger),
        "outbox": {
            "delivered": units(line.delivered),
            "waiting": units(line.waiting),
            "in_doubt": units(line.in_doubt),
            "parked": units(line.parked),
            "late": units(line.late),
        },
        "stripe": units(line.stripe),
        "drift": units(line.drift),
        "explanation": {kind: units(amount) for kind, amount in line.explained.items()},
        "unexplained": line.matters,
    }


def _told(report: Report, scales: Scales) -> None:
    if report.lines:
        head = ("TENANT", "METRIC", "SPAN", "LEDGER", "DELIVERED", "STRIPE", "DRIFT", "EXPLANATION")
        table([head, *(_columns(line, scales) for line in report.lines)])
    for one in report.repairs:
        amount = to_decimal(one.amount, scales.get(one.metric, 0))
        click.echo(
            f"repaired: {one.tenant} {one.metric} {amount} {one.kind.replace('_', ' ')} {one.identifier}".rstrip()
        )
    for lost in report.unread:
        click.echo(f"not compared: {lost.tenant} {lost.metric}: {lost.cause}")
    matters = sum(line.matters for line in report.lines if line.span == "day")
    click.echo(f"{report.lanes} lanes compared, {matters} days with unexplained drift")


def _columns(line: Line, scales: Scales) -> tuple[str, ...]:
    scale = scales.get(line.metric, 0)
    span = _date(line.from_s, whole_day=True) if line.span == "day" else f"period {_date(line.from_s, whole_day=True)}"
    numbers = [str(to_decimal(number, scale)) for number in (line.ledger, line.delivered, line.stripe, line.drift)]
    reasons = ", ".join(f"{kind.replace('_', ' ')} {to_decimal(n, scale)}" for kind, n in line.explained.items())
    return (line.tenant, line.metric, span, *numbers, reasons)


def _parked_row(item: Parked, scales: Scales) -> dict[str, object]:
    return {
        "identifier": item.identifier,
        "tenant": item.window.tenant,
        "metric": item.window.metric,
        "period": _date(item.window.period_s),
        "hour": _date(item.window.hour_s),
        "number": item.number,
        "attempt": item.attempt,
        "amount": to_decimal(item.amount, scales.get(item.window.metric, 0)),
        "reason": item.reason,
        "created": _date(item.created_s),
    }


def _date(at_s: int, *, whole_day: bool = False) -> str:
    return dt.datetime.fromtimestamp(at_s, dt.UTC).strftime("%Y-%m-%d" if whole_day else "%Y-%m-%dT%H:%M:%SZ")
