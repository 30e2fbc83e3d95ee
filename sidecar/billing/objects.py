"""Ids of the meters, products and prices at Stripe, as ``sidecar stripe setup`` found or made them.

Guarantees: one current object for each kind and name; what was replaced stays known, so that an older subscription can
            still be told which plan it is on. Names follow from the catalogue alone: a meter has its metric's name, a
            product is ``metric:<metric>`` or ``plan:<plan>``, a price is its lookup key without the prefix.
Gives up:   knowing better than Stripe: setup reads Stripe and writes here, everybody else only reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct

from sidecar.errors import NotFound
from sidecar.ledger.transaction import Transaction

Kind = Literal["meter", "product", "price"]
PREFIX = "quota"  # of event names and lookup keys: what Stripe's account has from us
MARK = "quota_name"  # in the metadata of products and prices
ANNUAL_MONTHS = 12
UNLIMITED = "unlimited"
_OWN = ":included:"


class StripeObject(Struct, frozen=True, kw_only=True):
    """One object at Stripe. ``metric`` is empty of what belongs to a plan alone, ``plan`` of what all plans share.

    ``interval_months`` is how often a price is paid, ``event_name`` what a meter listens to.
    """

    id: str
    kind: Kind
    name: str
    plan: str = ""
    metric: str = ""
    event_name: str = ""
    interval_months: int = 0
    current: bool = True


class PlanPrices(Struct, frozen=True):
    """What a subscription to a plan consists of: ids of the base prices (empty: none), and one price a metric."""

    base: str
    annual: str
    metered: dict[str, str]


def event_name(metric: str) -> str:
    """The name of a metric's meter events."""
    return f"{PREFIX}_{metric}"


def metric_product(metric: str) -> str:
    """The name of the product that a metric's prices belong to."""
    return f"metric:{metric}"


def plan_product(plan: str) -> str:
    """The name of the product that a plan's base prices belong to."""
    return f"plan:{plan}"


def base_price(plan: str, *, annual: bool = False) -> str:
    """The name of a plan's base price."""
    return f"base:{plan}:annual" if annual else f"base:{plan}"


def usage_price(plan: str, metric: str) -> str:
    """The name of a plan's price of a metric."""
    return f"usage:{plan}:{metric}"


def own_price(plan: str, metric: str, included: str, terms: str) -> str:
    """The name of a price with another included amount than the plan's; ``terms`` tells apart what else it says."""
    return f"{usage_price(plan, metric)}{_OWN}{included}:{terms}"


def is_own(price: str) -> bool:
    """Whether a price has an included amount of its own."""
    return _OWN in price


def own_included(price: str) -> str:
    """The included amount that the name of a price says, in whole units; empty when it is the plan's."""
    return price.partition(_OWN)[2].partition(":")[0]


def lookup_key(price: str) -> str:
    """The lookup key of a price; names of plans and metrics have no colons, so no two are equal."""
    return f"{PREFIX}:{price}"


async def objects(tx: Transaction, kind: Kind | Literal[""] = "") -> dict[str, StripeObject]:
    """The current objects of a kind, or of all, by name; names of different kinds never meet."""
    found = [_object(row) for row in await tx.rows("stripe_objects", kind)]
    return {item.name: item for item in found}


async def meter_event_name(tx: Transaction, metric: str) -> str:
    """What usage of a metric is sent as; NotFound when setup has made no meter for it."""
    meter = (await objects(tx, "meter")).get(metric)
    if meter is None:
        raise NotFound(f"there is no meter of {metric} at Stripe; run `sidecar stripe setup`")
    return meter.event_name


async def plan_prices(tx: Transaction, plan: str) -> PlanPrices:
    """The prices that a new subscription to a plan gets; NotFound when setup has not made any."""
    found = [_object(row) for row in await tx.rows("stripe_plan_prices", plan)]
    if not found:
        raise NotFound(f"there are no prices of the plan {plan} at Stripe; run `sidecar stripe setup`")
    by_name = {item.name: item.id for item in found}
    return PlanPrices(
        base=by_name.get(base_price(plan), ""),
        annual=by_name.get(base_price(plan, annual=True), ""),
        metered={item.metric: item.id for item in found if item.metric},
    )


async def by_ids(tx: Transaction, ids: Iterable[str]) -> dict[str, StripeObject]:
    """Those of the ids that are ours, replaced ones too."""
    found = [_object(row) for row in await tx.rows("stripe_objects_by_id", list(ids))]
    return {item.id: item for item in found}


async def price_ids(tx: Transaction, names: Iterable[str]) -> dict[str, str]:
    """Ids of prices by their names, those that new subscriptions never get too."""
    return {str(row[0]): str(row[1]) for row in await tx.rows("stripe_prices_named", list(names))}


async def prices_in_use(tx: Transaction) -> frozenset[str]:
    """Ids of prices that some subscription has that is not over."""
    return frozenset(str(row[0]) for row in await tx.rows("stripe_prices_in_use"))


async def record(tx: Transaction, found: Sequence[StripeObject], still: Iterable[str] = ()) -> None:
    """Make these the current objects, and no others but those whose ids are ``still`` in use."""
    await tx.rows("retire_stripe_objects", [*(item.id for item in found), *still])
    await tx.rows(
        "write_stripe_objects",
        [item.id for item in found],
        [item.kind for item in found],
        [item.name for item in found],
        [item.plan for item in found],
        [item.metric for item in found],
        [item.event_name for item in found],
        [item.interval_months for item in found],
    )


async def remember(tx: Transaction, prices: Iterable[StripeObject]) -> None:
    """Know prices that somebody else made by their plan and metric; new subscriptions never get them."""
    found = list(prices)
    await tx.rows(
        "remember_prices",
        [item.id for item in found],
        [item.name for item in found],
        [item.plan for item in found],
        [item.metric for item in found],
    )


def _object(row: Any) -> StripeObject:
    return StripeObject(**dict(zip(StripeObject.__struct_fields__, row, strict=True)))
