"""A process that changes a subscription is killed between any two steps; another one finishes what it began.

A step is a call to Stripe or a transaction; a kill before one is a kill after the one before. Whoever finishes is
killed on the way, too. What comes out is compared with the same change undisturbed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import stripe as sdk
from stripe._http_client import AIOHTTPClient

from sidecar.billing import customers
from sidecar.billing.shop.setup import set_up
from sidecar.billing.stripe_api import StripeApi
from sidecar.billing.subscriptions import intentions, subscriptions
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscribing import Subscribing, Wish
from sidecar.catalogue.load import parse
from sidecar.clock import Clock
from sidecar.control.catalogues import Catalogues
from sidecar.ledger import audit, plans, tenants
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction
from tests.servers.stripe import KEY, Stripe

ACTOR = "test"
CENTS = 5
Change = Callable[[Subscribing, str], Awaitable[object]]
CATALOGUE = """
identity: [{header: x-tenant-id}]
metrics: {calls: {reported: true}, jobs: {reported: true}}
plans:
  free: {limits: {calls: 10, jobs: 1}}
  standard:
    price: 99
    limits: {calls: {included: 100, overage: {price: "0.01"}}, jobs: {included: 5, overage: {price: "0.10"}}}
  big:
    price: 499
    limits: {calls: {included: 1000, overage: {price: "0.005"}}, jobs: {included: 50, overage: {price: "0.05"}}}
"""


class Killed(BaseException):
    """As SIGKILL: nothing of this process happens after it."""


class Life:
    """Counts the steps of a process and ends it at one of them."""

    def __init__(self, steps_max: int) -> None:
        self.steps = 0
        self._steps_max = steps_max

    def step(self) -> None:
        self.steps += 1
        if self.steps > self._steps_max:
            raise Killed

    @property
    def over(self) -> bool:
        return self.steps > self._steps_max


class MortalLedger(Ledger):
    """Whose process may be dead: then nothing is written any more, by nobody's `finally` either."""

    life: Life

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        self.life.step()
        async with super().transaction() as tx:
            yield tx
            if self.life.over:
                raise Killed


class MortalHttp(AIOHTTPClient):
    """Whose process may die before a request is sent."""

    life: Life

    async def request_async(self, *arguments: Any, **named: Any) -> Any:
        self.life.step()
        return await super().request_async(*arguments, **named)


class World:
    """An account, a ledger, and processes that change subscriptions in them."""

    def __init__(self, dsn: str, stripe: Stripe, ledger: Ledger, api: StripeApi, clock: Clock) -> None:
        self.dsn, self.stripe, self.ledger, self.api, self.clock = dsn, stripe, ledger, api, clock
        self.flushed: list[str] = []
        self.number = 0

    def subscribing(self, ledger: Ledger, api: StripeApi) -> Subscribing:
        async def flush(tenant: str, /) -> int:
            self.flushed.append(tenant)
            return 0

        return Subscribing(Mirror(ledger, api, Catalogues().in_force, self.clock), flush, "create_prorations")

    async def tenant(self) -> str:
        """A new tenant on the free plan."""
        self.number += 1
        name = f"t{self.number}"
        async with self.ledger.transaction() as tx:
            await tenants.put(tx, name, plan="free", actor=ACTOR)
        return name

    async def card(self, tenant: str) -> str:
        made = await customers.create(self.ledger, self.api, tenant, actor=ACTOR)
        method = await self.api.v1.payment_methods.attach_async("pm_card_visa", {"customer": made.customer})
        settings: Any = {"invoice_settings": {"default_payment_method": method.id}}
        await self.api.v1.customers.update_async(made.customer, settings)
        return made.customer

    async def steps(self, change: Change, tenant: str) -> int:
        """How many steps the change has."""
        life = Life(10**6)
        assert not await self.die(life, change, tenant)
        return life.steps

    async def die(self, life: Life, change: Change, tenant: str) -> bool:
        """Run a change in a process that dies at a step; whether it died."""
        http = MortalHttp()
        http.life = life
        address: Any = {"api": self.stripe.url}
        client = sdk.StripeClient(KEY, base_addresses=address, http_client=http, max_network_retries=0)
        ledger = await MortalLedger.open(self.dsn, shards=1, connections_max=2)
        ledger.life = life
        try:
            await change(self.subscribing(ledger, StripeApi(client, http)), tenant)
        except Killed:
            return True
        else:
            return False
        finally:
            await http.close_async()  # type: ignore[no-untyped-call]
            await ledger.close()

    async def recover(self, killed_at: int) -> None:
        """What the next processes do when the dead one's time is up; the first of them dies as well."""
        for life in (Life(killed_at), Life(10**6)):
            async with self.ledger.transaction() as tx:
                await tx._connection.execute("update billing_changes set ends = now(), next_try = now()")
            await self.die(life, lambda one, _: one.finish_begun(), "")

    async def outcome(self, tenant: str) -> dict[str, Any]:
        """All that a change is about, without names that are made up."""
        mirror = Mirror(self.ledger, self.api, Catalogues().in_force, self.clock)
        async with self.ledger.transaction() as tx:
            row = await tx.row("customer_of", tenant)
        raw: list[dict[str, Any]] = []
        if row is not None:
            raw = await mirror.listed(row["customer"])
        for one in raw:
            await mirror.subscription(str(one["id"]), with_invoice=True)
        async with self.ledger.transaction() as tx:
            found = await tenants.show(tx, tenant)
            kept = await subscriptions.current(tx, tenant)
            prices = {row["id"]: row["name"] for row in await tx.rows("stripe_objects", "price")}
            pending = await intentions.of_tenant(tx, tenant)
            told = [entry.action for entry in await audit.read(tx, tenant=tenant)]
        at_stripe = []
        for one in raw:
            invoices = await self.api.v1.invoices.list_async({"customer": one["customer"], "limit": 100})
            params: Any = {"customer": one["customer"], "subscription": one["id"]}
            coming: Any = None
            if one["status"] != "canceled":
                coming = await self.api.v1.invoices.create_preview_async(params)
            at_stripe.append(
                {
                    "status": one["status"],
                    "cancels": one["cancel_at_period_end"],
                    "items": sorted(prices[item["price"]["id"]] for item in one["items"]["data"]),
                    "invoices": sorted((str(made.billing_reason), made.total) for made in invoices.data),
                    "coming": coming.total if coming is not None else 0,
                    "plan": one["metadata"]["plan"],
                }
            )
        return {
            "tenant": (found.plan, found.status),
            "subscriptions": at_stripe,
            "next_plan": kept.subscription.next_plan if kept is not None else None,
            "pending": pending,
            "customers": len(self.customers_of(tenant)),
            "told": sorted(action for action in told if action.startswith("billing.")),
        }

    def customers_of(self, tenant: str) -> list[Any]:
        return [one for one in self.stripe.state("customers")["customers"] if one["metadata"].get("tenant") == tenant]


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[World]:
    stripe = Stripe()
    await asyncio.to_thread(stripe.start)
    ledger = await Ledger.open(database, shards=1, connections_max=4)
    api = StripeApi.open(KEY, stripe.url)
    async with ledger.transaction() as tx:
        await plans.apply(tx, CATALOGUE, {}, actor=ACTOR)
        await set_up(tx, api, parse(CATALOGUE, "test"))
    yield World(database, stripe, ledger, api, Clock(tmp_path / "clock"))
    await asyncio.to_thread(stripe.stop)
    await api.close()
    await ledger.close()


CHANGES: dict[str, tuple[bool, bool, Change]] = {
    # Whether the tenant has a card, and a subscription, before; and what is changed.
    "subscribe": (True, False, lambda one, who: one.subscribe(who, Wish(plan="standard"), actor=ACTOR)),
    "first customer": (
        False,
        False,
        lambda one, who: one.subscribe(who, Wish(plan="standard", days_until_due=30), actor=ACTOR),
    ),
    "change": (True, True, lambda one, who: one.change(who, "big", actor=ACTOR)),
    "without proration": (True, True, lambda one, who: one.change(who, "big", proration="none", actor=ACTOR)),
    "billed at once": (True, True, lambda one, who: one.change(who, "big", proration="always_invoice", actor=ACTOR)),
    "at period end": (True, True, lambda one, who: one.change(who, "big", when="period_end", actor=ACTOR)),
    "cancel": (True, True, lambda one, who: one.cancel(who, when="now", actor=ACTOR)),
    "cancel at period end": (True, True, lambda one, who: one.cancel(who, actor=ACTOR)),
}


async def _ready(world: World, *, card: bool, subscribed: bool, waiting: bool) -> str:
    tenant = await world.tenant()
    customer = await world.card(tenant) if card else ""
    if subscribed:
        subscribing = world.subscribing(world.ledger, world.api)
        await subscribing.subscribe(tenant, Wish(plan="standard"), actor=ACTOR)
        payload = {"stripe_customer_id": customer, "value": "150"}
        await world.api.v1.billing.meter_events.create_async({"event_name": "quota_calls", "payload": payload})
        if waiting:
            await subscribing.change(tenant, "big", when="period_end", actor=ACTOR)
    return tenant


async def _killed_at_every_step(world: World, name: str, *, waiting: bool = False) -> None:
    card, subscribed, change = CHANGES[name]

    async def ready() -> str:
        return await _ready(world, card=card, subscribed=subscribed, waiting=waiting)

    steps = await world.steps(change, await ready())
    undisturbed, *victims = [await ready() for _ in range(steps + 2)]
    world.stripe.advance("1d")
    before = _nearly(await world.outcome(undisturbed))
    await change(world.subscribing(world.ledger, world.api), undisturbed)
    wanted = _nearly(await world.outcome(undisturbed))
    begun = False
    for step, tenant in enumerate(victims):
        died = await world.die(Life(step), change, tenant)
        assert died is (step < steps)
        async with world.ledger.transaction() as tx:
            begun |= await intentions.of_tenant(tx, tenant) is not None
        await world.recover(step * 7 % steps)
        # Until it is noted what is to be done, nothing may have happened.
        assert await world.outcome(tenant) == (wanted if begun else before), f"killed at step {step}"
    assert begun
    assert steps > 5


def _nearly(outcome: dict[str, Any]) -> dict[str, Any]:
    """The same outcome a few seconds later, which are worth less than a cent each."""
    for one in outcome["subscriptions"]:
        one["coming"] = pytest.approx(one["coming"], abs=CENTS)
        one["invoices"] = [(reason, pytest.approx(total, abs=CENTS)) for reason, total in one["invoices"]]
    return outcome


@pytest.mark.parametrize("name", list(CHANGES))
async def test_a_change_is_finished_after_a_kill_at_any_step(world: World, name: str) -> None:
    await _killed_at_every_step(world, name)


@pytest.mark.parametrize("name", ["change", "cancel"])
async def test_a_change_of_what_waits_for_the_period_is_finished_after_a_kill_at_any_step(
    world: World, name: str
) -> None:
    await _killed_at_every_step(world, name, waiting=True)
