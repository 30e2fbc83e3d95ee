"""Prices of tenants whose included amounts are not their plan's.

Guarantees: a tenant that is subscribed, or whose plan is changed, gets its own included amounts at once; where an
            override comes or goes later, they follow with the next billing period: what is used until then is billed
            by the terms it was used by. Tenants with the same amounts share a price, made once.
Gives up:   the running period. At Stripe a price that is exchanged counts from the exchange on, so a tenant would have
            what is included twice.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct, structs

from sidecar.billing import objects
from sidecar.billing.objects import PlanPrices, StripeObject
from sidecar.billing.shop.applying import price_params
from sidecar.billing.shop.offer import WantedPrice, own_prices
from sidecar.billing.stripe_api import errors
from sidecar.billing.subscriptions import items
from sidecar.billing.subscriptions.intentions import Wish
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscriptions import named
from sidecar.catalogue.model import Catalogue, Limit, Plan
from sidecar.errors import Conflict
from sidecar.ledger.transaction import Transaction

AT_ONCE = 50


class Arranged(Struct, frozen=True):
    """What a change that waits for the period's end brings: included amounts of its own, by metric."""

    schedule: str
    included: dict[str, str]
    annual: bool = False


class Drifted(Struct, frozen=True):
    """A subscription whose next period would be billed by other included amounts than its tenant's, of some metrics."""

    tenant: str
    subscription: str
    wish: Wish
    metrics: tuple[str, ...]


async def priced(mirror: Mirror, catalogue: Catalogue, plan: Plan, tenant: str, prices: PlanPrices) -> PlanPrices:
    """The prices of a plan for one tenant; those that are missing at Stripe are made."""
    async with mirror.ledger.transaction() as tx:
        overrides = (await tx.rows("overrides_of", tenant))[0][0]
        wanted, problem = own_prices(catalogue, plan, msgspec.json.decode(overrides))
        known = await objects.price_ids(tx, [price.name for price in wanted])
        ids = {(kind, one.name): one.id for kind in ("meter", "product") for one in (await _named(tx, kind)).values()}
    if problem:
        raise Conflict(f"the overrides of {tenant!r} cannot be billed: {problem}")
    metered = dict(prices.metered)
    for price in wanted:
        metered[price.metric] = known.get(price.name) or await _made(mirror, price, ids)
    return structs.replace(prices, metered=metered)


async def arrange(tx: Transaction, raw: Mapping[str, Any]) -> None:
    """Keep what the change brings that waits in a subscription's schedule."""
    waiting = items.coming(raw["schedule"])
    prices = [named(item["price"]) for phase in waiting for item in phase["items"]]
    names = [price.name for price in (await objects.by_ids(tx, prices)).values()]
    found = Arranged(named(raw["schedule"]), _included(names), _annual(names))
    await tx.rows("write_arranged", str(raw["id"]), msgspec.json.encode(found).decode())


async def drifted(tx: Transaction, catalogue: Catalogue, but: Container[str] = ()) -> list[Drifted]:
    """Subscriptions that are to be changed with their next period, since overrides came, went or changed.

    Those with prices or schedules that somebody else made are left alone.
    """
    found = []
    for row in await tx.rows("subscriptions_with_own_prices"):
        plan = catalogue.plans.get(row["next_plan"] or row["plan"])
        if plan is None or row["id"] in but or not all(_made_here(name, row["plan"]) for name in row["prices"]):
            continue
        comes, annual = _included(row["prices"]), _annual(row["prices"])
        if row["schedule"]:
            arranged = msgspec.json.decode(row["arranged"], type=Arranged) if row["arranged"] else None
            if arranged is None or arranged.schedule != row["schedule"]:
                continue
            comes, annual = arranged.included, arranged.annual
        wanted, problem = own_prices(catalogue, plan, msgspec.json.decode(row["overrides"]))
        wants = _included(price.name for price in wanted)
        metrics = tuple(sorted(name for name in comes.keys() | wants.keys() if comes.get(name) != wants.get(name)))
        if not problem and metrics:
            found.append(Drifted(row["tenant"], row["id"], Wish(plan=plan.name, annual=annual), metrics))
    return found[:AT_ONCE]


def as_priced(catalogue: Catalogue, plan: Plan, prices: Iterable[StripeObject]) -> Plan:
    """A plan with the included amounts that a subscription's prices have."""
    own = _included(price.name for price in prices)

    def priced_limit(limit: Limit) -> Limit:
        if not limit.overage or limit.metric not in own:
            return limit
        units = own[limit.metric]
        whole = None if units == objects.UNLIMITED else int(units) * 10 ** catalogue.metrics[limit.metric].scale
        return structs.replace(limit, included=whole)

    return structs.replace(plan, limits=tuple(priced_limit(limit) for limit in plan.limits))


async def _named(tx: Transaction, kind: objects.Kind) -> Mapping[str, StripeObject]:
    return await objects.objects(tx, kind)


async def _made(mirror: Mirror, wanted: WantedPrice, ids: Mapping[tuple[str, str], str]) -> str:
    """Find a price by its lookup key, or make it, and know it from here on."""
    api: Any = mirror.api.v1.prices
    with errors():
        found = (await api.list_async({"lookup_keys": [wanted.lookup_key], "active": True, "limit": 1})).data
        if found:
            made = found[0]
        else:
            key = f"quota-price-{wanted.name}-{mirror.clock.wall_s() // 86_400}"
            made = await api.create_async(price_params(wanted, ids), {"idempotency_key": key[:255]})
    known = StripeObject(
        id=str(made.id), kind="price", name=wanted.name, plan=wanted.plan, metric=wanted.metric, current=False
    )
    async with mirror.ledger.transaction() as tx:
        await objects.remember(tx, [known])
    return known.id


def _made_here(price: str, plan: str) -> bool:
    return price in (objects.base_price(plan), objects.base_price(plan, annual=True)) or price.startswith(
        objects.usage_price(plan, "")
    )


def _annual(names: Iterable[str]) -> bool:
    return any(name.endswith(":annual") for name in names)


def _included(names: Iterable[str]) -> dict[str, str]:
    """Included amounts of their own, by metric."""
    return {name.split(":")[2]: objects.own_included(name) for name in names if objects.is_own(name)}
