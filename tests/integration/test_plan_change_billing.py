"""Usage around a change of plan: whatever minute it is decided in, it is on an invoice, and on one only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.billing import customers, objects
from sidecar.billing.outbox.claim import ForwarderTerms
from sidecar.billing.outbox.counters import BillingCounters
from sidecar.billing.outbox.forwarder import Forwarder
from sidecar.billing.shop.setup import set_up
from sidecar.billing.stripe_api import StripeApi
from sidecar.billing.subscriptions import subscriptions
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscribing import Subscribing, Wish
from sidecar.catalogue.load import parse
from sidecar.catalogue.period import bounds
from sidecar.clock import Clock
from sidecar.control.catalogues import Catalogues
from sidecar.errors import SidecarError
from sidecar.ledger import plans, tenants
from sidecar.ledger.connection import Ledger
from sidecar.ledger.shard import CounterRow
from tests.servers.stripe import KEY, Stripe

HOUR_S = 3_600
DAY_S = 86_400
ACTOR = "test"
EVENTS = "/v1/billing/meter_events"
CATALOGUE = """
identity: [{header: x-tenant-id}]
metrics: {calls: {reported: true}}
plans:
  free: {limits: {calls: 10}}
  standard:
    price: 99
    annual_price: 990
    limits: {calls: {included: 100, overage: {price: "0.01"}}}
  big:
    price: 499
    annual_price: 4990
    limits: {calls: {included: 1000, overage: {price: "0.005"}}}
"""


class Bench:
    """A tenant whose usage goes from the ledger to Stripe's invoices, and the clock of all parts."""

    def __init__(self, ledger: Ledger, api: StripeApi, stripe: Stripe, clock: Clock) -> None:
        self.ledger, self.api, self.stripe, self.clock = ledger, api, stripe, clock
        self.mirror = Mirror(ledger, api, Catalogues().in_force, clock)
        terms = ForwarderTerms(interval_s=1, close_delay_s=HOUR_S, calls_per_s=900)
        self.forwarder = Forwarder(ledger, api, terms, BillingCounters(), clock)
        self.subscribing = Subscribing(self.mirror, self._flush, "create_prorations")
        self.customer = ""
        self._counted: dict[tuple[int, int], int] = {}

    async def _flush(self, tenant: str, /) -> int:
        return await self.forwarder.flush_tenant(tenant, 2)

    async def advance(self, seconds: int) -> None:
        await asyncio.to_thread(self.stripe.advance, f"{seconds}s")
        self.clock.advance(seconds * 1000)
        await self.ledger.set_clock_ahead(self.clock.offset_ms // 1000)

    async def to(self, minute: int, second: int) -> None:
        """Go on to a minute of an hour."""
        await self.advance((minute * 60 + second - self.clock.wall_s()) % HOUR_S)

    async def subscribe(self) -> None:
        async with self.ledger.transaction() as tx:
            await tenants.put(tx, "acme", plan="free", actor=ACTOR)
        self.customer = (await customers.create(self.ledger, self.api, "acme", actor=ACTOR)).customer
        method = await self.api.v1.payment_methods.attach_async("pm_card_visa", {"customer": self.customer})
        settings: Any = {"invoice_settings": {"default_payment_method": method.id}}
        await self.api.v1.customers.update_async(self.customer, settings)
        await self.subscribing.subscribe("acme", Wish(plan="standard"), actor=ACTOR)
        await self.advance(2 * DAY_S)

    async def use(self, amount: int, *, hour_s: int = 0) -> None:
        """Have the ledger count calls, of this hour unless told otherwise."""
        hour_s = (hour_s or self.clock.wall_s()) // HOUR_S * HOUR_S
        async with self.ledger.transaction() as tx:
            row = await tenants.show(tx, "acme")
        period_s = bounds("billing", hour_s, row.anchor_s, row.interval_months)[0]
        key = (period_s, hour_s)
        self._counted[key] = self._counted.get(key, 0) + amount
        counter = CounterRow("acme", "calls", "", period_s, hour_s // HOUR_S, "w1", self._counted[key])
        async with self.ledger.shard(0) as shard:
            assert shard is not None
            await shard.merge([counter], "free")
            await shard.raise_epoch()

    async def change(self, plan: str = "big", **more: Any) -> None:
        await self.subscribing.change("acme", plan, actor=ACTOR, **more)

    async def carry(self) -> None:
        await self.forwarder.flush(5)

    async def invoiced(self) -> dict[str, int]:
        """Calls on all invoices, by plan, when the period is over and its invoice final."""
        await self.advance(33 * DAY_S)
        raw = (await self.api.v1.invoices.list_async({"customer": self.customer, "limit": 100})).to_dict()["data"]
        prices = {str(one.id): one for one in (await self.api.v1.prices.list_async({"limit": 100})).data}
        calls: dict[str, int] = {}
        for invoice in raw:
            for line in invoice["lines"]["data"]:
                price = prices[line["pricing"]["price_details"]["price"]]
                if price.recurring is not None and price.recurring.usage_type == "metered":
                    plan = price.to_dict()["metadata"]["plan"]
                    calls[plan] = calls.get(plan, 0) + int(line["quantity"] or 0)
        return {plan: amount for plan, amount in calls.items() if amount}


@pytest.fixture
async def bench(database: str, tmp_path: Path) -> AsyncIterator[Bench]:
    stripe = Stripe()
    await asyncio.to_thread(stripe.start)
    ledger = await Ledger.open(database, shards=1, connections_max=6)
    api = StripeApi.open(KEY, stripe.url)
    async with ledger.transaction() as tx:
        await plans.apply(tx, CATALOGUE, {}, actor=ACTOR)
        await set_up(tx, api, parse(CATALOGUE, "test"))
    bench = Bench(ledger, api, stripe, Clock(tmp_path / "clock"))
    await bench.to(20, 0)
    await bench.subscribe()
    yield bench
    await asyncio.to_thread(stripe.stop)
    await api.close()
    await ledger.close()


async def test_usage_in_the_minute_of_a_change_is_billed_on_both_sides_of_it(bench: Bench) -> None:
    await bench.to(2, 10)
    await bench.use(130)
    await bench.change()
    await bench.use(30)
    await bench.carry()
    assert await bench.invoiced() == {"standard": 130, "big": 30}


async def test_usage_after_a_change_in_the_last_minute_of_an_hour_is_billed_by_the_new_plan(bench: Bench) -> None:
    await bench.to(59, 15)
    hour_s = bench.clock.wall_s()
    await bench.use(130)
    await bench.change()
    await bench.to(0, 20)
    await bench.use(30, hour_s=hour_s)  # counted at :59:59, and carried now
    await bench.carry()
    assert await bench.invoiced() == {"standard": 130, "big": 30}


async def test_usage_of_an_hour_before_the_change_that_comes_after_it_is_billed_by_the_new_plan(bench: Bench) -> None:
    await bench.to(59, 15)
    hour_s = bench.clock.wall_s()
    await bench.to(2, 10)
    await bench.use(7)
    await bench.change()
    await bench.use(30, hour_s=hour_s)
    await bench.carry()
    assert await bench.invoiced() == {"standard": 7, "big": 30}
    async with bench.ledger.transaction() as tx:
        late = await tx._connection.fetchval("select sum(amount) from stripe_outbox where late")
    assert int(late) == 30


@pytest.mark.parametrize("annual", [False, True])
@pytest.mark.parametrize("fault", ["rate_limited", "cut_before", "cut_after"])
async def test_a_row_that_waits_during_a_forced_change_is_billed_once(bench: Bench, annual: bool, fault: str) -> None:
    """By the new plan, unless it had arrived: nobody can know that before the summaries tell."""
    await bench.to(2, 10)
    bench.stripe.faults({"kind": fault, "path": EVENTS})
    await bench.use(130)
    with pytest.raises(SidecarError, match="could not be sent"):
        await bench.change()
    await bench.change(force=True, annual=annual)
    bench.stripe.faults()
    await bench.use(30)
    for seconds in (40, 40, HOUR_S, 40):
        await bench.advance(seconds)
        await bench.carry()
    arrived = fault == "cut_after"
    assert await bench.invoiced() == ({"standard": 130, "big": 30} if arrived else {"big": 160})


async def test_a_price_exchanged_at_stripe_itself_counts_since_its_news(bench: Bench) -> None:
    await bench.to(2, 10)
    await bench.use(130)
    await bench.carry()
    async with bench.ledger.transaction() as tx:
        before = await subscriptions.current(tx, "acme")
        prices = await objects.plan_prices(tx, "big")
    assert before is not None
    metered = next(item for item in before.items if item.metric)
    name = before.subscription.id
    items: Any = [{"id": metered.id, "price": prices.metered["calls"]}]
    await bench.api.v1.subscriptions.update_async(name, {"items": items})
    for _ in range(2):  # the same news twice
        await bench.mirror.subscription(name)
    await bench.use(30)
    await bench.carry()
    assert await bench.invoiced() == {"standard": 130, "big": 30}


async def test_nobody_decides_or_sends_for_a_tenant_while_its_plan_changes(bench: Bench) -> None:
    await bench.to(2, 10)
    await bench.use(5)
    async with customers.one_change(bench.ledger, "acme"):
        await bench.forwarder.decide()
        await bench.forwarder.pump()
        assert bench.stripe.totals() == []
        assert await bench.forwarder.flush_tenant("acme") == 0
    assert [int(float(total["total"])) for total in bench.stripe.totals()] == [5]
