"""`sidecar price PLAN METRIC=AMOUNT ...`."""

from __future__ import annotations

import os

import click

from sidecar import settings
from sidecar.catalogue.amount import parse_amount
from sidecar.catalogue.load import read
from sidecar.catalogue.model import Catalogue
from sidecar.catalogue.pricing import Invoice
from sidecar.catalogue.pricing import price as priced
from sidecar.cli.target import Target, find, show_json, table, wait, with_json, with_state
from sidecar.control.accounts import known_plan
from sidecar.control.catalogues import Catalogues
from sidecar.errors import NotFound
from sidecar.nearest import nearest


@click.command()
@click.argument("plan")
@click.argument("usage", nargs=-1, metavar="METRIC=AMOUNT...")
@click.option("--catalogue", metavar="FILE", help="A catalogue file instead of the one in force.")
@click.option("--currency", metavar="CODE", help="A currency of the catalogue; its own by default.")
@click.option("--annual", is_flag=True, help="With the base price of a year instead of that of a period.")
@with_state
@with_json
def price(
    plan: str,
    usage: tuple[str, ...],
    catalogue: str | None,
    currency: str | None,
    state: str | None,
    *,
    annual: bool,
    as_json: bool,
) -> None:
    """Print what one period of PLAN costs with this usage."""
    found = _catalogue(catalogue, state)
    chosen = found.plans[known_plan(found, plan)]
    if annual and chosen.annual_price is None:
        raise NotFound(f'the plan "{plan}" has no annual price; leave --annual away')
    money = _currency(found, currency)
    invoice = priced(chosen, _amounts(found, usage), money, base="annual" if annual else "interval")
    if as_json:
        show_json(
            {
                "base": f"{invoice.base:f}",
                "overage": {metric: f"{amount:f}" for metric, amount in invoice.overage.items()},
                "total": f"{invoice.total:f}",
            }
        )
    else:
        _told(plan, money, invoice)


def _currency(catalogue: Catalogue, currency: str | None) -> str:
    known = (catalogue.currency, *catalogue.currencies)
    if currency is None:
        return catalogue.currency
    if currency.lower() not in known:
        raise NotFound(f"the catalogue has no prices in {currency}; it has {', '.join(known)}")
    return currency.lower()


def _told(plan: str, currency: str, invoice: Invoice) -> None:
    lines = [(f"plan {plan}", f"{invoice.base:f}")]
    lines += [(f"{metric} beyond the included", f"{amount:f}") for metric, amount in invoice.overage.items()]
    lines.append((f"total in {currency.upper()}", f"{invoice.total:f}"))
    width = max(len(amount) for _, amount in lines)
    table([(what, amount.rjust(width)) for what, amount in lines])


def _catalogue(file: str | None, state: str | None) -> Catalogue:
    """The file named, else the catalogue in force, else the file of the settings."""
    if file:
        return read(file)
    target = find(state)
    if target.settings.postgres_dsn:
        return wait(_in_force(target))
    configured = settings.load(os.environ, roles=()).catalogue_file
    if not configured:
        raise NotFound("no catalogue to price by; name one with --catalogue FILE, or start `sidecar dev`")
    return read(configured)


async def _in_force(target: Target) -> Catalogue:
    async with target.transaction() as tx:
        return await Catalogues().in_force(tx)


def _amounts(catalogue: Catalogue, usage: tuple[str, ...]) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for text in usage:
        metric, equals, amount = text.partition("=")
        if not equals:
            raise click.UsageError(f"{text!r} is no usage; write METRIC=AMOUNT, like api_calls=120000")
        if metric not in catalogue.metrics:
            known = ", ".join(catalogue.metrics)
            raise NotFound(
                f'there is no metric "{metric}"{nearest(metric, catalogue.metrics)}; the catalogue has {known}'
            )
        if metric in amounts:
            raise click.UsageError(f"{metric} is given twice; add the amounts up")
        amounts[metric] = parse_amount(amount.replace(",", ""), catalogue.metrics[metric].scale)
    return amounts
