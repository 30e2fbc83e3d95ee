"""Overrides of included amounts: what is enforced is what Stripe bills, from the next period on at the latest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sidecar.billing.subscriptions import invoices, projection, subscriptions
from sidecar.billing.subscriptions.following import Following
from sidecar.billing.subscriptions.subscriptions import Kept
from sidecar.errors import Conflict
from sidecar.ledger import tenants
from tests.servers.subscribed import ACTOR, CATALOGUE, Bench, subscribed


@pytest.fixture
async def bench(database: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with subscribed(database, tmp_path) as opened:
        yield opened


async def include(bench: Bench, amount: int | str | None, metric: str = "calls") -> None:
    """Override what the tenant has included; None takes that back."""
    value = None if amount is None else {metric: {"included": amount}}
    async with bench.ledger.transaction() as tx:
        await tenants.override(tx, "acme", "limits", value, actor=ACTOR)


async def follow(bench: Bench) -> int:
    return await Following(bench.mirror, bench.subscribing).follow()


async def current(bench: Bench) -> Kept:
    async with bench.ledger.transaction() as tx:
        found = await subscriptions.current(tx, "acme")
    assert found is not None
    return found


async def use(bench: Bench, customer: str, amount: int) -> None:
    await bench.api.v1.billing.meter_events.create_async(
        {"event_name": "quota_calls", "payload": {"stripe_customer_id": customer, "value": str(amount)}}
    )


async def billed(bench: Bench) -> list[Decimal]:
    """What was paid for calls, the newest invoice first, of whole periods only."""
    async with bench.ledger.transaction() as tx:
        found = await invoices.of_tenant(tx, "acme")
    return [
        Decimal(sum(line.amount for line in one.lines if line.metric == "calls"))
        for one in found
        if any(line.metric == "calls" for line in one.lines)
    ]


async def prices(bench: Bench, kept: Kept) -> dict[str, Any]:
    return {item["id"]: item["price"]["id"] for item in (await bench.at_stripe(kept))["items"]["data"]}


async def test_who_subscribes_with_an_override_is_billed_beyond_its_own_amount(bench: Bench) -> None:
    customer = await bench.customer()
    await include(bench, 300)
    await bench.subscribe()
    await use(bench, customer, 450)
    async with bench.ledger.transaction() as tx:
        catalogue = await bench.mirror.catalogue(tx)
        told = await projection.upcoming(tx, catalogue, "acme", bench.clock.wall_s())
    assert [line.included for line in told.now.lines if line.metric == "calls"] == [300]
    await bench.advance("32d")
    assert await billed(bench) == [150]
    assert await follow(bench) == 0


async def test_tenants_with_the_same_amount_share_a_price_and_others_have_the_plans(bench: Bench) -> None:
    for tenant, amount in (("acme", 300), ("b", 300), ("c", 400), ("d", None)):
        await bench.customer(tenant)
        if amount:
            async with bench.ledger.transaction() as tx:
                await tenants.override(tx, tenant, "limits", {"calls": {"included": amount}}, actor=ACTOR)
    of = {name: await bench.subscribe(tenant=name) for name in ("acme", "b", "c", "d")}
    calls = {name: next(item.price for item in kept.items if item.metric == "calls") for name, kept in of.items()}
    assert calls["acme"] == calls["b"]
    assert len(set(calls.values())) == 3


@pytest.mark.parametrize("back", [False, True])
async def test_an_override_that_comes_or_goes_later_counts_from_the_next_period_on(bench: Bench, *, back: bool) -> None:
    customer = await bench.customer()
    if back:
        await include(bench, 300)
    kept = await bench.subscribe()
    before = await prices(bench, kept)
    await include(bench, None if back else 300)
    assert await follow(bench) == 1
    assert await follow(bench) == 0, "it is arranged already"
    assert await prices(bench, kept) == before
    await use(bench, customer, 450)
    await bench.renew(kept)
    await use(bench, customer, 450)
    assert (await current(bench)).subscription.plan == "standard"
    assert await follow(bench) == 0
    await bench.renew(kept)
    assert await billed(bench) == ([350, 150] if back else [150, 350])
    after = await prices(bench, kept)
    assert len(set(before.values()) ^ set(after.values())) == 2, "the price of one metric changed, and nothing else"


async def test_a_change_that_waits_already_comes_with_the_override(bench: Bench) -> None:
    await bench.customer()
    await bench.subscribe()
    await bench.subscribing.change("acme", "standard", annual=True, when="period_end", actor=ACTOR)
    await include(bench, 300)
    assert await follow(bench) == 1
    await bench.advance("32d")
    kept = await current(bench)
    assert kept.subscription.interval_months == 12, "still the annual price"
    assert await follow(bench) == 0


async def test_a_cancellation_that_waits_is_left_alone(bench: Bench) -> None:
    await bench.customer()
    await bench.subscribe()
    await bench.subscribing.cancel("acme", actor=ACTOR)
    await include(bench, 300)
    assert await follow(bench) == 0
    assert (await current(bench)).subscription.cancel_at_period_end


async def test_who_pays_an_older_price_keeps_it_though_an_override_comes(bench: Bench) -> None:
    await bench.customer()
    kept = await bench.subscribe()
    base = next(item.price for item in kept.items if not item.metric)
    dearer = CATALOGUE.replace("price: {usd: 99, eur: 89}", "price: {usd: 120, eur: 110}")
    await bench.set_up(dearer)
    await include(bench, 300)
    assert await follow(bench) == 1
    await bench.advance("32d")
    items = (await current(bench)).items
    assert next(item.price for item in items if not item.metric) == base
    assert (await bench.api.v1.prices.retrieve_async(base)).active
    await bench.subscribing.change("acme", "standard", actor=ACTOR)
    await bench.set_up(dearer)
    assert not (await bench.api.v1.prices.retrieve_async(base)).active, "the last who paid it is gone"
    assert {one["price"]["id"] for one in (await bench.at_stripe(kept))["items"]["data"]}.isdisjoint({base})


async def test_an_amount_that_no_tier_can_end_at_is_refused(bench: Bench) -> None:
    await bench.set_up(CATALOGUE.replace("calls: {reported: true, unit: calls}", "calls: {reported: true, scale: 1}"))
    await bench.customer()
    await include(bench, "300.5")
    with pytest.raises(Conflict, match="whole number"):
        await bench.subscribe()
