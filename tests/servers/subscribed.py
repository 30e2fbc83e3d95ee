"""A tenant, an account at the stand-in, and what hears its webhooks; a test moves the clock of all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestServer

from sidecar.billing import customers
from sidecar.billing.shop.setup import set_up
from sidecar.billing.stripe_api import StripeApi
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscribing import Subscribing, Wish
from sidecar.billing.subscriptions.subscriptions import Kept
from sidecar.billing.webhooks.inbox import Inbox
from sidecar.billing.webhooks.webhooks import WebhookCounters
from sidecar.catalogue.load import parse
from sidecar.clock import Clock
from sidecar.control.api import control_app
from sidecar.control.catalogues import Catalogues
from sidecar.control.webhooks import PATH, Receiver
from sidecar.ledger import plans, tenants
from sidecar.ledger.connection import Ledger
from tests.servers.stripe import KEY, WEBHOOK_SECRET, Stripe

HOUR_S = 3_600
DAY_S = 86_400
ACTOR = "test"
CATALOGUE = """
identity: [{header: x-tenant-id}]
currencies: [eur]
metrics: {calls: {reported: true, unit: calls}, jobs: {reported: true}}
plans:
  free: {limits: {calls: 10, jobs: 1}}
  standard:
    price: {usd: 99, eur: 89}
    annual_price: {usd: 990, eur: 890}
    past_due: {grace: 7d}
    limits:
      calls: {included: 100, overage: {price: {usd: "0.01", eur: "0.01"}}}
      jobs: {included: 5, overage: {price: {usd: "0.10", eur: "0.10"}}}
  big:
    price: {usd: 499, eur: 449}
    trial: 14d
    limits:
      calls: {included: 1000, overage: {price: {usd: "0.005", eur: "0.005"}}}
      jobs: {included: 50, overage: {price: {usd: "0.05", eur: "0.05"}}}
"""


class Bench:
    """A tenant, an account with prices, and an inbox that hears its webhooks."""

    def __init__(self, ledger: Ledger, api: StripeApi, stripe: Stripe, clock: Clock) -> None:
        self.ledger, self.api, self.stripe, self.clock = ledger, api, stripe, clock
        self.mirror = Mirror(ledger, api, Catalogues().in_force, clock)
        self.flushed: list[str] = []
        self.left = 0
        self.subscribing = Subscribing(self.mirror, self._flush, "create_prorations")
        self.counters = WebhookCounters()
        self.inbox = Inbox(self.mirror, self._report, self.counters)

    async def _flush(self, tenant: str, /) -> int:
        self.flushed.append(tenant)
        return self.left

    async def _report(self, event: str, kind: str, meter: str, /) -> None:
        raise AssertionError(event)

    async def set_up(self, catalogue: str) -> None:
        """Put a catalogue in force, and set Stripe up for it."""
        async with self.ledger.transaction() as tx:
            await plans.apply(tx, catalogue, {}, actor=ACTOR)
            await set_up(tx, self.api, parse(catalogue, "test"))

    async def subscribe(self, plan: str = "standard", tenant: str = "acme", **more: Any) -> Kept:
        return await self.subscribing.subscribe(tenant, Wish(plan=plan, **more), actor=ACTOR)

    async def customer(self, tenant: str = "acme", card: str = "pm_card_visa") -> str:
        """A tenant with a customer and a card."""
        async with self.ledger.transaction() as tx:
            await tenants.put(tx, tenant, plan="free", actor=ACTOR)
        made = await customers.create(self.ledger, self.api, tenant, actor=ACTOR)
        if card:
            method = await self.api.v1.payment_methods.attach_async(card, {"customer": made.customer})
            settings = {"invoice_settings": {"default_payment_method": method.id}}
            await self.api.v1.customers.update_async(made.customer, settings)  # type: ignore[arg-type]
        return made.customer

    async def advance(self, duration: str) -> None:
        """Move the clock of all parts, and deal with the news that this makes: of days after every other one.

        Stripe gives up a webhook after three days, and in one leap it would be older than that. Hours are one leap.
        """
        amount, unit = int(duration[:-1]), duration[-1]
        steps = [amount] if unit == "h" else [2] * (amount // 2) + [1] * (amount % 2)
        for step in steps:
            await asyncio.to_thread(self.stripe.advance, f"{step}{unit}")
            self.clock.advance(step * {"h": HOUR_S * 1000, "d": DAY_S * 1000}[unit])
            await self.ledger.set_clock_ahead(self.clock.offset_ms // 1000)
            await self.hear()

    async def renew(self, kept: Kept) -> None:
        """Move the clock of all parts to two hours after the running period ends: its invoice is final by then."""
        ends_s = int((await self.at_stripe(kept))["items"]["data"][0]["current_period_end"])
        await self.advance(f"{-int((self.clock.wall_s() - ends_s) // HOUR_S) + 2}h")

    async def hear(self) -> None:
        """Every event that was made has arrived and is dealt with."""
        await asyncio.to_thread(self.stripe.settle)
        while await self.inbox.work():
            pass

    async def tenant(self, name: str = "acme") -> tuple[str, str]:
        async with self.ledger.transaction() as tx:
            row = await tenants.show(tx, name)
        return row.plan, row.status

    async def at_stripe(self, kept: Kept) -> dict[str, Any]:
        found: dict[str, Any] = (await self.api.v1.subscriptions.retrieve_async(kept.subscription.id)).to_dict()
        return found


@asynccontextmanager
async def subscribed(database: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """A ledger and a stand-in with prices, and a receiver of its webhooks."""
    stripe = Stripe()
    await asyncio.to_thread(stripe.start)
    ledger = await Ledger.open(database, shards=1, connections_max=6)
    clock = Clock(tmp_path / "clock")
    api = StripeApi.open(KEY, stripe.url)
    bench = Bench(ledger, api, stripe, clock)
    await bench.set_up(CATALOGUE)
    receiver = Receiver(ledger, (WEBHOOK_SECRET,), clock, bench.counters, bench.inbox.wake)
    server = TestServer(control_app(ledger, ("token" * 8,), clock, receiver=receiver))
    await server.start_server()
    stripe.standin.deliver_to(str(server.make_url(PATH)), [WEBHOOK_SECRET])
    yield bench
    await asyncio.to_thread(stripe.stop)
    await server.close()
    await api.close()
    await ledger.close()
