"""Subscribe a tenant, change its plan, cancel: what Stripe is told to do.

Guarantees: a tenant gets no second living subscription; what was used and not yet invoiced is sent before a change or
            an end takes effect, or nothing is changed. What Stripe answers is kept at once, without waiting for news.
            A subscription whose answer was lost is found by the next try, or made by it under the same idempotency key.
Gives up:   knowing the fate of a call whose answer was lost: the caller hears so, and Stripe's news tell the rest.
            What is counted in the moment between the last usage sent and Stripe's change is billed by the new terms.
Source: https://docs.stripe.com/api/subscriptions/update, https://docs.stripe.com/api/subscription_schedules
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
from msgspec import Struct

from sidecar.billing import customers, objects, subscriptions
from sidecar.billing.mirror import Mirror
from sidecar.billing.objects import PlanPrices
from sidecar.billing.standing import ENDED, Subscription
from sidecar.billing.stripe_api import errors
from sidecar.billing.subscriptions import Item, Kept
from sidecar.catalogue.yaml_reader import nearest
from sidecar.errors import Conflict, NotFound, StripeBusy, StripeRefused, StripeUnavailable
from sidecar.ledger import audit, tenants

if TYPE_CHECKING:
    from stripe.params import (
        SubscriptionCreateParams,
        SubscriptionUpdateParams,
    )

Proration = Literal["create_prorations", "always_invoice", "none"]
When = Literal["now", "period_end"]
TrialEnd = Literal["pause", "cancel", "create_invoice"]
REPLAYS_MAX = 20
OPEN_CHECKOUTS_MAX = 100


class FlushTenant(Protocol):
    """Decides what a tenant used and Stripe does not know, and sends it; how many deltas could not be sent."""

    async def __call__(self, tenant: str, /) -> int: ...


class Wish(Struct, frozen=True, kw_only=True):
    """What somebody subscribes to. ``trial_days`` None is the plan's, an empty currency the catalogue's."""

    plan: str
    annual: bool = False
    currency: str = ""
    trial_days: int | None = None
    trial_end: TrialEnd = "pause"
    days_until_due: int | None = None


class Subscribing:
    """Changes of subscriptions. ``proration`` is used where a call names none."""

    def __init__(self, mirror: Mirror, flush: FlushTenant, proration: Proration) -> None:
        self._mirror = mirror
        self._ledger = mirror.ledger
        self._api = mirror.api
        self._flush = flush
        self._proration = proration

    async def subscribe(self, tenant: str, wish: Wish, *, actor: str) -> Kept:
        """Subscribe a tenant; Conflict when it has a living subscription."""
        async with customers.one_change(self._ledger, tenant):
            ended = await self.free_to_subscribe(tenant)
            prices, automatic_tax, trial_days = await self.terms(wish)
            customer = await customers.create(self._ledger, self._api, tenant, actor=actor)
            params: SubscriptionCreateParams = {
                "customer": customer.customer,
                "items": new_items(prices, wish),
                "metadata": {customers.TENANT_KEY: tenant, "plan": wish.plan},
                "payment_settings": {"save_default_payment_method": "on_subscription"},
                "expand": ["schedule"],
            }
            if wish.currency:
                params["currency"] = wish.currency
            if automatic_tax:
                params["automatic_tax"] = {"enabled": True}
            if trial_days:
                params["trial_period_days"] = trial_days
                params["trial_settings"] = {"end_behavior": {"missing_payment_method": wish.trial_end}}
            if wish.days_until_due is not None:
                params["collection_method"] = "send_invoice"
                params["days_until_due"] = wish.days_until_due
            seen_by, raw = await self._create(tenant, params, ended)
            return await self._kept(tenant, raw, seen_by, actor, "billing.subscribe")

    async def change(
        self,
        tenant: str,
        plan: str,
        *,
        actor: str,
        annual: bool = False,
        when: When = "now",
        proration: Proration | None = None,
        force: bool = False,
    ) -> Kept:
        """Move the tenant's subscription to a plan, at once or from the next period on.

        ``force`` goes on although usage until now could not be sent (it waits, or was set aside): what is sent later is
        billed by the new terms.
        """
        wish = Wish(plan=plan, annual=annual)
        async with customers.one_change(self._ledger, tenant):
            before = await self._living(tenant)
            prices, _, _ = await self.terms(wish)
            if when == "period_end":
                return await self._change_later(tenant, before, wish, prices, actor)
            await self._sent(tenant, force=force)
            await self._release(before.subscription)
            seen_by, raw = await self._replace(before, prices, wish, proration or self._proration)
            return await self._kept(tenant, raw, seen_by, actor, "billing.change")

    async def cancel(
        self,
        tenant: str,
        *,
        actor: str,
        when: When = "period_end",
        proration: Proration | None = None,
        force: bool = False,
    ) -> Kept:
        """End the tenant's subscription; at once, the last usage is sent first and invoiced with the end.

        ``force`` ends it although usage could not be sent; nobody pays for that any more.
        """
        async with customers.one_change(self._ledger, tenant):
            before = await self._living(tenant)
            await self._sent(tenant, force=force)
            await self._release(before.subscription)
            seen_by = await self._mirror.look()
            name = before.subscription.id
            with errors():
                if when == "period_end":
                    ended = await self._api.v1.subscriptions.update_async(name, {"cancel_at_period_end": True})
                else:
                    credit = (proration or self._proration) != "none"
                    ended = await self._api.v1.subscriptions.cancel_async(
                        name, {"invoice_now": True, "prorate": credit}
                    )
            return await self._kept(tenant, ended.to_dict(), seen_by, actor, "billing.cancel")

    async def go_on(self, tenant: str, *, actor: str) -> Kept:
        """Take back what waits for the end of the period: a cancellation, or a change of plan."""
        async with customers.one_change(self._ledger, tenant):
            before = await self._living(tenant)
            await self._release(before.subscription)
            seen_by = await self._mirror.look()
            with errors():
                kept = await self._api.v1.subscriptions.update_async(
                    before.subscription.id, {"cancel_at_period_end": False}
                )
            return await self._kept(tenant, kept.to_dict(), seen_by, actor, "billing.go_on")

    async def terms(self, wish: Wish) -> tuple[PlanPrices, bool, int]:
        """The prices of what is wished for, whether Stripe works out the tax, and the days of trial."""
        async with self._ledger.transaction() as tx:
            catalogue = await self._mirror.catalogue(tx)
            plan = catalogue.plans.get(wish.plan)
            if plan is None:
                raise NotFound(f'there is no plan "{wish.plan}"{nearest(wish.plan, catalogue.plans)}')
            if wish.annual and plan.annual_price is None:
                raise NotFound(f'the plan "{wish.plan}" has no annual price; give it one in the catalogue')
            known = (catalogue.currency, *catalogue.currencies)
            if wish.currency and wish.currency not in known:
                raise NotFound(f'there are no prices in "{wish.currency}"; the catalogue has {", ".join(known)}')
            prices = await objects.plan_prices(tx, wish.plan)
        return prices, catalogue.tax.automatic, plan.trial_days if wish.trial_days is None else wish.trial_days

    async def free_to_subscribe(self, tenant: str) -> list[str]:
        """Conflict when the tenant has a living subscription, here or at Stripe; the ids of those that ended.

        Open pages of Checkout are closed before: each of them could still be completed.
        """
        async with self._ledger.transaction() as tx:
            found = await subscriptions.current(tx, tenant)
            linked = await tx.row("customer_of", tenant)
        if found is not None and found.subscription.status not in ENDED:
            raise _occupied(tenant, found.subscription.id, found.subscription.status)
        if linked is None:
            return []
        customer = customers.Customer(*linked).customer
        await self._close_checkouts(customer)
        there = await self._mirror.listed(customer)
        living = [raw for raw in there if raw["status"] not in ENDED]
        for raw in living:
            await self._mirror.subscription(str(raw["id"]))
        if living:
            raise _occupied(tenant, str(living[0]["id"]), str(living[0]["status"]))
        return sorted(str(raw["id"]) for raw in there)

    async def _close_checkouts(self, customer: str) -> None:
        sessions = self._api.v1.checkout.sessions
        with errors():
            page = await sessions.list_async({"customer": customer, "status": "open", "limit": OPEN_CHECKOUTS_MAX})
            names = [str(one.id) async for one in page.auto_paging_iter()]
        for name in names:
            try:
                with errors():
                    await sessions.expire_async(name)
            except StripeRefused:
                with errors():
                    if (await sessions.retrieve_async(name)).status == "open":
                        raise

    async def _create(
        self, tenant: str, params: SubscriptionCreateParams, ended: list[str]
    ) -> tuple[int, dict[str, Any]]:
        """Make a subscription under a key that follows from what is asked and from what there was before.

        An answer that was given before and was an error is of a call that has ended: unless it left a subscription,
        the next key asks anew.
        """
        for number in range(REPLAYS_MAX):
            seen_by = await self._mirror.look()
            try:
                with errors():
                    made = await self._api.v1.subscriptions.create_async(
                        params, {"idempotency_key": _key(tenant, params, ended, number)}
                    )
                return seen_by, made.to_dict()
            except (StripeRefused, StripeUnavailable) as error:
                if not error.replayed:
                    raise
            ended = await self.free_to_subscribe(tenant)
        raise Conflict(f"Stripe repeats {REPLAYS_MAX} old refusals of this subscription; try again tomorrow")

    async def _sent(self, tenant: str, *, force: bool) -> None:
        """Send what was used so far under the terms it was used by; StripeBusy when some of it has to wait."""
        left = await self._flush(tenant)
        if left and not force:
            told = f"{left} deltas of usage of {tenant!r} could not be sent yet"
            raise StripeBusy(f"{told}, so nothing was changed; try again, or leave it with force")

    async def _living(self, tenant: str) -> Kept:
        """The subscription to be changed, as Stripe has it now: people change theirs in the portal, too."""
        async with self._ledger.transaction() as tx:
            found = await subscriptions.current(tx, tenant)
        if found is not None and found.subscription.status not in ENDED:
            await self._mirror.subscription(found.subscription.id)
            async with self._ledger.transaction() as tx:
                found = await subscriptions.current(tx, tenant)
        if found is None or found.subscription.status in ENDED:
            raise NotFound(f"tenant {tenant!r} has no subscription; subscribe it with POST .../subscription")
        return found

    async def _replace(
        self, before: Kept, prices: PlanPrices, wish: Wish, proration: Proration
    ) -> tuple[int, dict[str, Any]]:
        """Exchange the items. Metered ones always with proration: `none` would leave their usage until now unbilled."""
        name = before.subscription.id
        wanted = new_items(prices, wish)
        base = _exchanged(
            [item for item in before.items if not item.metric], [one for one in wanted if "quantity" in one]
        )
        metered = _exchanged(
            [item for item in before.items if item.metric], [one for one in wanted if "quantity" not in one]
        )
        seen_by = await self._mirror.look()
        steps: list[tuple[list[Any], Proration]] = [(base + metered, proration)]
        if proration == "none" and metered:
            steps = [(metered, "create_prorations"), *([(base, proration)] if base else [])]
        raw: dict[str, Any] = {}
        for items, how in steps:
            params: SubscriptionUpdateParams = {
                "items": items,
                "proration_behavior": how,
                "cancel_at_period_end": False,
                "metadata": {"plan": wish.plan},
                "expand": ["schedule"],
            }
            with errors():
                raw = (await self._api.v1.subscriptions.update_async(name, params)).to_dict()
        return seen_by, raw

    async def _change_later(self, tenant: str, before: Kept, wish: Wish, prices: PlanPrices, actor: str) -> Kept:
        """A schedule of two phases: what there is until the period's end, then the new plan, then free of schedules."""
        name = before.subscription.id
        await self._release(before.subscription)
        if before.subscription.cancel_at_period_end:
            with errors():
                await self._api.v1.subscriptions.update_async(name, {"cancel_at_period_end": False})
        with errors():
            schedule = (await self._api.v1.subscription_schedules.create_async({"from_subscription": name})).to_dict()
            running = schedule["phases"][0]
            await self._api.v1.subscription_schedules.update_async(
                str(schedule["id"]),
                {
                    "end_behavior": "release",
                    "proration_behavior": "none",
                    "phases": [
                        {
                            "items": [_phase_item(item) for item in before.items],
                            "start_date": int(running["start_date"]),
                            "end_date": int(running["end_date"]),
                        },
                        {
                            "items": new_items(prices, wish),
                            "proration_behavior": "none",
                            "metadata": {"plan": wish.plan},
                        },
                    ],
                },
            )
        seen_by = await self._mirror.look()
        with errors():
            seen = await self._api.v1.subscriptions.retrieve_async(name, {"expand": ["schedule"]})
        return await self._kept(tenant, seen.to_dict(), seen_by, actor, "billing.change_later")

    async def _release(self, before: Subscription) -> None:
        """Free a subscription of its schedule: Stripe refuses other changes until then."""
        if before.schedule:
            with errors():
                await self._api.v1.subscription_schedules.release_async(before.schedule)

    async def _kept(self, tenant: str, raw: dict[str, Any], seen_by: int, actor: str, action: str) -> Kept:
        await self._mirror.keep_subscription(raw, seen_by, actor=actor)
        async with self._ledger.transaction() as tx:
            kept = await subscriptions.current(tx, tenant)
            if kept is None:
                raise Conflict(f"the subscription {raw.get('id')} belongs to another tenant by now")
            one = kept.subscription
            detail = {"subscription": one.id, "plan": one.plan, "status": one.status}
            await audit.write(tx, actor=actor, action=action, tenant=tenant, detail=detail)
            await tenants.show(tx, tenant)
        return kept


def _occupied(tenant: str, subscription: str, status: str) -> Conflict:
    return Conflict(f"{tenant!r} has the subscription {subscription} ({status}); change that one, or end it first")


def _key(tenant: str, params: SubscriptionCreateParams, ended: Sequence[str], number: int) -> str:
    asked = msgspec.json.encode([tenant, params, ended, number], order="sorted")
    return f"quota-subscribe-{hashlib.sha256(asked).hexdigest()}"


def new_items(prices: PlanPrices, wish: Wish) -> list[Any]:
    """The items of a subscription to a plan: its base price, if it has one, and a price for each metric."""
    base = [{"price": price, "quantity": 1} for price in _base(prices, wish)]
    return [*base, *({"price": price} for price in prices.metered.values())]


def _base(prices: PlanPrices, wish: Wish) -> list[str]:
    chosen = prices.annual if wish.annual else prices.base
    return [chosen] if chosen else []


def _exchanged(old: list[Item], wanted: list[Any]) -> list[Any]:
    """Parameters that leave what stays, add what is new and delete the rest."""
    present, prices = {item.price for item in old}, {item["price"] for item in wanted}
    added = [item for item in wanted if item["price"] not in present]
    return [*added, *({"id": item.id, "deleted": True} for item in old if item.price not in prices)]


def _phase_item(item: Item) -> Any:
    return {"price": item.price} if item.metric else {"price": item.price, "quantity": item.quantity or 1}
