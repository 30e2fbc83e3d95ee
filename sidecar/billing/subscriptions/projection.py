"""The invoice that is coming: a tenant's running period priced so far, and as it will be when usage goes on as lately.

Guarantees: priced by ``catalogue.pricing``, from the ledger's windows and what the outbox moved between periods, so it
            is what Stripe will bill once it has everything. Amounts and forecasts are exact; a forecast is rounded
            once, to the metric's base unit, half up.
Gives up:   taxes, discounts, credits, proration and trials, which Stripe adds. Overrides of included amounts count as
            far as the subscription has prices of its own for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from msgspec import Struct

from sidecar.billing import objects
from sidecar.billing.shop.offer import billed_metrics
from sidecar.billing.subscriptions import subscriptions
from sidecar.billing.subscriptions.own_prices import as_priced
from sidecar.billing.subscriptions.subscriptions import Kept
from sidecar.catalogue import period
from sidecar.catalogue.amount import to_decimal
from sidecar.catalogue.model import Catalogue, Plan
from sidecar.catalogue.pricing import Base, Invoice, price
from sidecar.catalogue.resolve import plan_of
from sidecar.ledger import tenants
from sidecar.ledger.transaction import Transaction

HOUR_S = 3_600
TREND_S = 7 * 86_400


class ProjectedLine(Struct, frozen=True, kw_only=True):
    """One metric: amounts in whole units, the price of what is beyond the included amount in the major unit."""

    limit: str
    metric: str
    used: Decimal
    included: Decimal
    beyond: Decimal
    price: str


class Projected(Struct, frozen=True, kw_only=True):
    """An invoice as it would be; prices are decimal texts in the major unit."""

    base: str
    lines: list[ProjectedLine]
    total: str


class Upcoming(Struct, frozen=True, kw_only=True):
    """A tenant's running period. ``forecast`` is null while there is less than an hour to judge by."""

    tenant: str
    plan: str
    currency: str
    period_start: int
    period_end: int
    now: Projected
    forecast: Projected | None


class Terms(Struct, frozen=True):
    """How a tenant pays: for usage by ``plan``, in advance by ``base_plan``."""

    plan: Plan
    base_plan: Plan
    base: Base
    currency: str


async def upcoming(tx: Transaction, catalogue: Catalogue, tenant: str, now_s: int) -> Upcoming:
    """Read the ledger; NotFound when there is no such tenant."""
    row = await tenants.show(tx, tenant)
    plan = plan_of(catalogue, row.plan)
    start_s, end_s = period.bounds("billing", now_s, row.anchor_s, plan.interval_months)
    kept = await subscriptions.current(tx, tenant)
    prices = await objects.by_ids(tx, [item.price for item in kept.items] if kept is not None else [])
    annual = any(item.interval_months > plan.interval_months for item in prices.values() if not item.metric)
    terms = _terms(catalogue, as_priced(catalogue, plan, prices.values()), kept, end_s, annual=annual)
    metrics = [metric.name for metric in billed_metrics(catalogue)]
    # Windows are whole hours, so a trend begins with one; the running hour counts as far as it has come.
    since_s = max(start_s, -(-(now_s - TREND_S) // HOUR_S) * HOUR_S)
    used, recent = await _used(tx, tenant, metrics, (start_s, end_s), since_s)
    expected = {
        metric: forecast(used[metric], recent[metric], now_s - since_s, end_s - now_s)
        for metric in metrics
        if now_s - since_s >= HOUR_S
    }
    scales = {name: metric.scale for name, metric in catalogue.metrics.items()}
    return Upcoming(
        tenant=tenant,
        plan=plan.name,
        currency=terms.currency,
        period_start=start_s,
        period_end=end_s,
        now=_told(invoice(terms, used), scales),
        forecast=_told(invoice(terms, expected), scales) if expected or now_s - since_s >= HOUR_S else None,
    )


def forecast(used: int, recent: int, elapsed_s: int, left_s: int) -> int:
    """What will be used by the end when the rest goes on as the recent time did, rounded half up. Pure."""
    return used + (2 * max(0, recent) * left_s + elapsed_s) // (2 * elapsed_s)


def invoice(terms: Terms, usage: dict[str, int]) -> Invoice:
    """Usage of the period by the plan of the period, and the base price of the one that begins at its end."""
    beyond = price(terms.plan, usage, terms.currency, base="none")
    base = price(terms.base_plan, {}, terms.currency, base=terms.base).base
    return Invoice(base, beyond.lines, base + beyond.total)


def _terms(catalogue: Catalogue, plan: Plan, kept: Kept | None, end_s: int, *, annual: bool) -> Terms:
    if kept is None:
        return Terms(plan, plan, "interval", catalogue.currency)
    one = kept.subscription
    currency = one.currency if one.currency in catalogue.currencies else catalogue.currency
    next_plan = catalogue.plans.get(one.next_plan, plan)
    base: Base = "annual" if annual else "interval"
    ends = one.cancel_at_period_end or 0 < one.cancel_at_s <= end_s or one.ended_s > 0
    paid_ahead = any(not item.metric and item.period_end_s > end_s for item in kept.items)
    return Terms(plan, next_plan, "none" if ends or paid_ahead else base, currency)


async def _used(
    tx: Transaction, tenant: str, metrics: Sequence[str], bounds_s: tuple[int, int], since_s: int
) -> tuple[dict[str, int], dict[str, int]]:
    """What the period is billed for so far, and what of it was used since an instant."""
    used, recent = dict.fromkeys(metrics, 0), dict.fromkeys(metrics, 0)
    for row in await tx.rows("billable_usage", tenant, bounds_s[0], since_s):
        if row["metric"] in used:
            used[row["metric"]], recent[row["metric"]] = row["used"], row["recent"]
    for row in await tx.rows("moved_usage", tenant, *bounds_s):
        if row["metric"] in used:
            used[row["metric"]] += row["amount"]
    return used, recent


def _told(found: Invoice, scales: Mapping[str, int]) -> Projected:
    return Projected(
        base=f"{found.base:f}",
        lines=[
            ProjectedLine(
                limit=line.limit,
                metric=line.metric,
                used=to_decimal(line.used, scales[line.metric]),
                included=to_decimal(line.included, scales[line.metric]),
                beyond=to_decimal(line.units, scales[line.metric]),
                price=f"{line.price:f}",
            )
            for line in found.lines
        ],
        total=f"{found.total:f}",
    )
