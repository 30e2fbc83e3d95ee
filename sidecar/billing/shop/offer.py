"""What a catalogue offers, in Stripe's terms: the meters, products and prices that there should be.

Guarantees: nothing here talks to anybody. Amounts are exact decimals of the minor unit; what Stripe could not hold
            exactly is a problem with its reason, not a rounding.
Gives up:   metrics that no plan bills: they are limited and counted, and never reach Stripe.

A metric that any plan has an overage for is billed: it gets a meter, a product, and in every plan one metered price.
Where a plan takes nothing for it (unlimited, or stopped at a cap), that price is 0: the usage still shows on the
invoice, and every subscription has the same items, so that a change of plan replaces prices and nothing else.
Source: https://docs.stripe.com/billing/subscriptions/usage-based/use-cases/flat-fee-and-overages
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import Struct, structs

from sidecar.billing import objects
from sidecar.catalogue.model import Catalogue, Limit, Metric, Plan
from sidecar.catalogue.pricing import base_price, minor_places, unit_amount
from sidecar.catalogue.resolve import plan_with

UNIT_LABEL_MAX = 12
UNIT_PRICE_PLACES = 12
TIER_UP_TO_MAX = 2**53


class Tier(Struct, frozen=True):
    """Price of each unit up to and including ``up_to`` (None: all others), in the minor unit."""

    up_to: int | None
    unit_amount: Decimal
    flat_amount: Decimal = Decimal(0)


class Terms(Struct, frozen=True, kw_only=True):
    """What can never be changed about a price. ``tiers`` by currency; ``meter`` is the metric, empty of a base price.

    ``product`` and ``meter`` are names of ours. ``strange`` names what only a price made by somebody else has.
    """

    product: str
    currency: str
    interval_months: int
    meter: str
    tiers: Mapping[str, tuple[Tier, ...]]
    strange: str = ""


class WantedMeter(Struct, frozen=True, kw_only=True):
    """A meter sums up the ``value`` of its events for each ``stripe_customer_id``."""

    metric: str
    title: str

    @property
    def event_name(self) -> str:
        """What events of this meter are called."""
        return objects.event_name(self.metric)


class WantedProduct(Struct, frozen=True, kw_only=True):
    """A product groups prices; its title is what customers read on invoices."""

    name: str
    title: str
    plan: str = ""
    metric: str = ""
    unit_label: str = ""
    tax_code: str = ""


class WantedPrice(Struct, frozen=True, kw_only=True):
    """A price, found again by its lookup key."""

    name: str
    plan: str
    metric: str
    title: str
    terms: Terms
    tax_behavior: str

    @property
    def lookup_key(self) -> str:
        """What this price is found by, whatever its id."""
        return objects.lookup_key(self.name)


class Offer(Struct, frozen=True):
    """All that should be there, and what of the catalogue Stripe cannot hold."""

    meters: tuple[WantedMeter, ...]
    products: tuple[WantedProduct, ...]
    prices: tuple[WantedPrice, ...]
    problems: tuple[str, ...]


def billed_metrics(catalogue: Catalogue) -> tuple[Metric, ...]:
    """The metrics that some plan has an overage for, in the catalogue's order."""
    billed = {limit.metric for plan in catalogue.plans.values() for limit in plan.limits if limit.overage}
    return tuple(metric for metric in catalogue.metrics.values() if metric.name in billed)


def offer(catalogue: Catalogue) -> Offer:
    """Turn a catalogue into the objects that Stripe should have."""
    metrics = billed_metrics(catalogue)
    code = catalogue.tax.code
    products = [
        WantedProduct(
            name=objects.metric_product(metric.name),
            title=metric.title or metric.name,
            metric=metric.name,
            unit_label=metric.unit if len(metric.unit) <= UNIT_LABEL_MAX else "",
            tax_code=code,
        )
        for metric in metrics
    ]
    prices: list[WantedPrice] = []
    problems: list[str] = []
    for plan in catalogue.plans.values():
        base = list(_base_prices(catalogue, plan))
        if base:
            name = objects.plan_product(plan.name)
            products.append(WantedProduct(name=name, title=plan.title or plan.name, plan=plan.name, tax_code=code))
        prices += base
        for metric in metrics:
            limit = billing_limit(plan, metric.name)
            problems += _problems(catalogue, plan, metric, limit)
            prices.append(_usage_price(catalogue, plan, metric, limit))
    meters = tuple(WantedMeter(metric=metric.name, title=metric.title or metric.name) for metric in metrics)
    return Offer(meters, tuple(products), tuple(prices), tuple(problems))


def billing_limit(plan: Plan, metric: str) -> Limit | None:
    """The limit whose overage a plan bills for a metric; the catalogue allows one at most."""
    return next((limit for limit in plan.limits if limit.metric == metric and limit.overage), None)


def own_prices(catalogue: Catalogue, plan: Plan, overrides: Mapping[str, Any]) -> tuple[tuple[WantedPrice, ...], str]:
    """Prices that a tenant's included amounts ask for, where they are not the plan's; or why there are none.

    A tier at Stripe has the included amount in it, so who has another one needs another price. Caps need none.
    """
    changed = plan_with(catalogue, plan, overrides)
    prices: list[WantedPrice] = []
    problems: list[str] = []
    for before, limit in zip(plan.limits, changed.limits, strict=True):
        if limit.included == before.included or not limit.overage:
            continue
        metric = catalogue.metrics[limit.metric]
        problems += _problems(catalogue, plan, metric, limit)
        own = _usage_price(catalogue, plan, metric, limit)
        included = objects.UNLIMITED if limit.included is None else str(limit.included // 10**metric.scale)
        terms = hashlib.sha256(msgspec.json.encode(own.terms, order="sorted")).hexdigest()[:8]
        name = objects.own_price(plan.name, metric.name, included, terms)
        prices.append(structs.replace(own, name=name, title=f"{own.title}, {included} included"))
    return tuple(prices), "; ".join(problems)


def _base_prices(catalogue: Catalogue, plan: Plan) -> Iterator[WantedPrice]:
    for annual in (False, True):
        if annual and plan.annual_price is None:
            continue
        tiers = {
            currency: (
                Tier(
                    None, base_price(plan, currency, "annual" if annual else "interval").scaleb(minor_places(currency))
                ),
            )
            for currency in _currencies(catalogue)
        }
        if all(tier.unit_amount == 0 for (tier,) in tiers.values()):
            continue
        yield WantedPrice(
            name=objects.base_price(plan.name, annual=annual),
            plan=plan.name,
            metric="",
            title=f"{plan.title or plan.name}{', annual' if annual else ''}",
            terms=Terms(
                product=objects.plan_product(plan.name),
                currency=catalogue.currency,
                interval_months=objects.ANNUAL_MONTHS if annual else plan.interval_months,
                meter="",
                tiers=tiers,
            ),
            tax_behavior=catalogue.tax.behavior,
        )


def _usage_price(catalogue: Catalogue, plan: Plan, metric: Metric, limit: Limit | None) -> WantedPrice:
    return WantedPrice(
        name=objects.usage_price(plan.name, metric.name),
        plan=plan.name,
        metric=metric.name,
        title=f"{plan.title or plan.name}: {metric.title or metric.name}",
        terms=Terms(
            product=objects.metric_product(metric.name),
            currency=catalogue.currency,
            interval_months=plan.interval_months,
            meter=metric.name,
            tiers={currency: _tiers(limit, metric.scale, currency) for currency in _currencies(catalogue)},
        ),
        tax_behavior=catalogue.tax.behavior,
    )


def _tiers(limit: Limit | None, scale: int, currency: str) -> tuple[Tier, ...]:
    """What is included for nothing, and what each unit beyond costs; one tier when there is only one price."""
    if limit is None or limit.overage is None or limit.included is None:
        return (Tier(None, Decimal(0)),)
    beyond = Tier(None, unit_amount(limit.overage, scale, currency))
    included = limit.included // 10**scale
    # Stripe has no tier that ends at 0.
    return (Tier(included, Decimal(0)), beyond) if included else (beyond,)


def _problems(catalogue: Catalogue, plan: Plan, metric: Metric, limit: Limit | None) -> Iterator[str]:
    if limit is None or limit.overage is None or limit.included is None:
        return
    where = f"plans.{plan.name}.limits.{limit.name}"
    if limit.included % 10**metric.scale:
        yield f"{where}: a tier at Stripe ends at a whole number of units; make the included amount a whole number"
    elif limit.included // 10**metric.scale > TIER_UP_TO_MAX:
        yield f"{where}: the included amount is too large for a tier at Stripe"
    for currency in _currencies(catalogue):
        places = unit_amount(limit.overage, metric.scale, currency).as_tuple().exponent
        if isinstance(places, int) and -places > UNIT_PRICE_PLACES:
            yield (
                f"{where}: one unit costs a fraction of the minor unit of {currency} with more than "
                f"{UNIT_PRICE_PLACES} decimal places, which Stripe does not take; choose a rounder price"
            )


def _currencies(catalogue: Catalogue) -> tuple[str, ...]:
    return (catalogue.currency, *catalogue.currencies)
