"""A thousand webhooks that the stand-in makes and delivers: in order and once, then shuffled and up to three times."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.billing import objects
from sidecar.billing.objects import PlanPrices
from sidecar.ledger import tenants
from tests.servers.subscribed import ACTOR, Bench, subscribed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TENANTS = [f"t{number}" for number in range(60)]
STATE = """
select 'tenant', id, plan, status, status_until::text, anchor::text from tenants
union all select 'subscription', id, plan, status, tenant || cancel_at_period_end::text, coalesce(ended::text, '')
    from subscriptions
union all select 'item', id, plan, price, period_start::text, period_end::text from subscription_items
union all select 'invoice', id, subscription, status, amount_remaining::text, coalesce(owed_since::text, '')
    from invoices
union all select 'line', invoice, price, amount::text, quantity::text, description from invoice_lines
union all select 'customer', customer, tenant, billed_from::text, '', '' from billing_customers
order by 1, 2, 3, 4, 5, 6
"""


@pytest.fixture
async def bench(database: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with subscribed(database, tmp_path) as opened:
        yield opened


async def state(bench: Bench) -> list[tuple[Any, ...]]:
    async with bench.ledger.transaction() as tx:
        return [tuple(row) for row in await tx._connection.fetch(STATE)]


async def fresh(bench: Bench) -> None:
    """A ledger that never heard of anybody's billing."""
    async with bench.ledger.transaction() as tx:
        await tx._connection.execute(
            "truncate webhook_events, subscription_items, subscriptions, invoice_lines, invoices, billing_customers, "
            "former_customers, billing_changes, plan_changes, tenants cascade"
        )
        for name in TENANTS:
            await tenants.put(tx, name, plan="free", actor=ACTOR)


class Life:
    """What happens to one customer at Stripe, where nobody of ours has a hand in it."""

    def __init__(self, bench: Bench, tenant: str, prices: dict[str, PlanPrices], fate: random.Random) -> None:
        self.v1: Any = bench.api.v1
        self.tenant, self.prices, self.fate = tenant, prices, fate
        self.customer = self.subscription = ""

    async def step(self, number: int) -> None:
        if number == 0:
            made = await self.v1.customers.create_async({"metadata": {"tenant": self.tenant}})
            self.customer = made.id
            await self.pay_with("pm_card_visa")
        elif number == 1:
            await self.subscribe("standard" if self.fate.random() < 0.7 else "big")
        elif number == 5 and self.fate.random() < 0.3:
            await self.v1.subscriptions.cancel_async(self.subscription, {"invoice_now": True})
            if self.fate.random() < 0.5:
                await self.subscribe("standard")
            else:
                self.subscription = ""
        elif self.subscription:
            await self.change()

    async def pay_with(self, card: str) -> None:
        method = await self.v1.payment_methods.attach_async(card, {"customer": self.customer})
        settings = {"invoice_settings": {"default_payment_method": method.id}}
        await self.v1.customers.update_async(self.customer, settings)

    async def subscribe(self, plan: str) -> None:
        found = self.prices[plan]
        made = await self.v1.subscriptions.create_async(
            {
                "customer": self.customer,
                "items": [{"price": found.base, "quantity": 1}, *({"price": one} for one in found.metered.values())],
                "metadata": {"plan": plan},
            }
        )
        self.subscription = made.id

    async def change(self) -> None:
        """Another plan, paid at once by a good card or not at all, or an end that waits."""
        chance = self.fate.random()
        if chance < 0.2:
            await self.v1.subscriptions.update_async(self.subscription, {"cancel_at_period_end": chance < 0.1})
            return
        if chance < 0.4:
            await self.pay_with("pm_card_chargeCustomerFail" if chance < 0.3 else "pm_card_visa")
        raw = (await self.v1.subscriptions.retrieve_async(self.subscription)).to_dict()
        there = {item["price"]["id"]: item["id"] for item in raw["items"]["data"]}
        found = self.prices[self.fate.choice(["standard", "big"])]
        wanted: list[dict[str, Any]] = [{"price": found.base, "quantity": 1}]
        wanted += [{"price": one} for one in found.metered.values()]
        items = [one for one in wanted if one["price"] not in there]
        gone = [
            {"id": item, "deleted": True} for price, item in there.items() if price not in {w["price"] for w in wanted}
        ]
        if items:
            await self.v1.subscriptions.update_async(
                self.subscription, {"items": [*items, *gone], "proration_behavior": "always_invoice"}
            )


async def test_a_thousand_webhooks_in_any_order_end_as_those_that_came_as_they_happened(bench: Bench) -> None:
    await fresh(bench)
    async with bench.ledger.transaction() as tx:
        prices = {plan: await objects.plan_prices(tx, plan) for plan in ("standard", "big")}
    lives = [Life(bench, name, prices, random.Random(number)) for number, name in enumerate(TENANTS)]
    for number in range(8):
        await asyncio.gather(*(life.step(number) for life in lives))
        await bench.hear()
    ordered = await state(bench)
    assert {row[3] for row in ordered if row[0] == "tenant"} > {"active", "cancelled"}
    handled = bench.counters.handled
    events = [one["event"] for one in bench.stripe.state("deliveries")["deliveries"]]
    assert handled >= 1_000

    await fresh(bench)
    order = random.Random(11)
    often = {event: order.randint(1, 3) for event in events}
    for times in range(1, 4):
        ids = [event for event in events if often[event] >= times]
        await asyncio.to_thread(bench.stripe.control, "POST", "/_redeliver", {"times": 1, "shuffle": times, "ids": ids})
        await bench.inbox.work()
    await bench.hear()
    assert await state(bench) == ordered
    assert bench.counters.handled == 2 * handled, "each once, however often it came"
    assert bench.counters.repeated == sum(often.values()) - len(events)
    assert bench.counters.dead == 0
