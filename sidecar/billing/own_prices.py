"""Prices of tenants whose included amounts are not their plan's.

Guarantees: a tenant that is subscribed, or whose plan is changed, gets its own included amounts at once; where an
            override comes or goes later, they follow with the next billing period: what is used until then is billed
            by the terms it was used by. Tenants with the same amounts share a price, made once.
Gives up:   the running period. At Stripe a price that is exchanged counts from the exchange on, so a tenant would have
            what is included twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, structs

from sidecar.billing import objects
from sidecar.billing.applying import price_params
from sidecar.billing.intentions import Wish
from sidecar.billing.mirror import Mirror
from sidecar.billing.objects import PlanPrices, StripeObject
from sidecar.billing.offer import WantedPrice, own_prices
from sidecar.billing.stripe_api import errors
from sidecar.catalogue.model import Catalogue, Plan
from sidecar.errors import Conflict
from sidecar.ledger.transaction import Transaction

AT_ONCE = 50
REPLAYS_MAX = 20


class Arranged(Struct, frozen=True):
    """What a change that waits for the period's end brings: included amounts of its own, by metric."""

    schedule: str
    included: dict[str, str]


class Drifted(Struct, frozen=True):
    """A subscription whose next period would be billed by other included amounts than its tenant's."""

    tenant: str
    subscription: str
    wish: Wish


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


async def arrange(tx: Transaction, subscription: str, schedule: str, names: Sequence[str]) -> None:
    """Keep what the change that waits brings."""
    found = Arranged(schedule, _included(names))
    await tx.rows("write_arranged", subscription, msgspec.json.encode(found).decode())


async def drifted(tx: Transaction, catalogue: Catalogue) -> list[Drifted]:
    """Subscriptions that are to be changed with their next period, since overrides came, went or changed."""
    found = []
    for row in await tx.rows("subscriptions_with_own_prices"):
        plan = catalogue.plans.get(row["next_plan"] or row["plan"])
        if plan is None:
            continue
        wanted, problem = own_prices(catalogue, plan, msgspec.json.decode(row["overrides"]))
        arranged = msgspec.json.decode(row["arranged"], type=Arranged) if row["arranged"] else Arranged("", {})
        comes = arranged.included if row["schedule"] and arranged.schedule == row["schedule"] else None
        if comes is None:
            comes = _included(row["prices"]) if not row["schedule"] else {}
        if not problem and comes != _included([price.name for price in wanted]):
            annual = any(name.endswith(":annual") for name in row["prices"])
            found.append(Drifted(row["tenant"], row["id"], Wish(plan=plan.name, annual=annual)))
    return found[:AT_ONCE]


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


def _included(names: Sequence[str]) -> dict[str, str]:
    """Included amounts of their own, by metric."""
    return {name.split(":")[2]: objects.own_included(name) for name in names if objects.is_own(name)}
