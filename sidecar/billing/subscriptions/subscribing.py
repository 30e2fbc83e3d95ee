"""Subscribe a tenant, change its plan, cancel: what is asked for, and what is finished after a crash.

Guarantees: a tenant gets no second living subscription; what was used and not yet invoiced is sent before a change or
            an end takes effect, or nothing is changed. A change that Stripe was told a part of is finished, by this
            process or by the next one: its intention is in the ledger before. What Stripe answers is kept at once,
            without waiting for news.
Gives up:   knowing the fate of a call whose answer was lost: the caller hears so, and it is finished a little later.
            What is counted in the moment between the last usage sent and Stripe's change is billed by the new terms.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct, structs

from sidecar.billing import customers, objects
from sidecar.billing.flush_requests import FlushTenant
from sidecar.billing.objects import PlanPrices
from sidecar.billing.stripe_api import errors
from sidecar.billing.subscriptions import intentions, own_prices, subscriptions
from sidecar.billing.subscriptions.execution import Execution
from sidecar.billing.subscriptions.intentions import Doing, Intention, Proration, TrialEnd, Unfinished, Wish
from sidecar.billing.subscriptions.items import new_items
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.standing import ENDED
from sidecar.billing.subscriptions.subscriptions import Kept
from sidecar.errors import Conflict, LedgerUnavailable, NotFound, SidecarError, StripeRefused, StripeUnavailable
from sidecar.ledger import audit
from sidecar.logs import Transition, fields
from sidecar.nearest import nearest

if TYPE_CHECKING:
    from stripe.params import SubscriptionCreateParams

__all__ = ["FlushTenant", "Proration", "Subscribing", "TrialEnd", "When", "Wish", "new_items"]

When = Literal["now", "period_end"]
ACTIONS = {
    "subscribe": "billing.subscribe",
    "change": "billing.change",
    "change_later": "billing.change_later",
    "cancel": "billing.cancel",
    "cancel_later": "billing.cancel",
    "go_on": "billing.go_on",
}
REPLAYS_MAX = 20
OPEN_CHECKOUTS_MAX = 100
FINISH_EVERY_S = 5.0
FINISHED_AT_ONCE = 25
DAY_S = 86_400

log = logging.getLogger(__name__)


class Finished(Struct, frozen=True):
    """What was begun before and is done now, with what came of it."""

    intention: Intention
    kept: Kept


class Subscribing:
    """Changes of subscriptions. ``proration`` is used where a call names none."""

    def __init__(self, mirror: Mirror, flush: FlushTenant, proration: Proration) -> None:
        self._mirror = mirror
        self._ledger = mirror.ledger
        self._api = mirror.api
        self._flush = flush
        self._proration = proration
        self._state = Transition(log, "changes of subscriptions")

    async def subscribe(self, tenant: str, wish: Wish, *, actor: str) -> Kept:
        """Subscribe a tenant; Conflict when it has a living subscription."""
        intention = intentions.new("subscribe", actor, wish=wish)
        async with self._one_change(tenant) as left:
            if done := _same(left, intention):
                return done
            await self.free_to_subscribe(tenant)
            await self.terms(wish, tenant)
            return await self._begin(tenant, intention)

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
        metrics: Collection[str] = (),
    ) -> Kept:
        """Move the tenant's subscription to a plan, at once or from the next period on; or prices of some metrics only.

        ``force`` goes on although usage until now could not be sent (it waits, or was set aside): what is sent later is
        billed by the new terms.
        """
        wish = Wish(plan=plan, annual=annual)
        async with self._one_change(tenant):
            before = await self._living(tenant)
            await self.terms(wish, tenant)
            intention = intentions.new(
                "change" if when == "now" else "change_later",
                actor,
                subscription=before.subscription.id,
                wish=wish,
                proration=proration or self._proration,
                force=force,
                metrics=tuple(metrics),
            )
            return await self._begin(tenant, intention)

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
        do: Doing = "cancel" if when == "now" else "cancel_later"
        intention = intentions.new(do, actor, proration=proration or self._proration, force=force)
        async with self._one_change(tenant) as left:
            if done := _same(left, intention):
                return done
            before = await self._living(tenant)
            return await self._begin(tenant, structs.replace(intention, subscription=before.subscription.id))

    async def go_on(self, tenant: str, *, actor: str) -> Kept:
        """Take back what waits for the end of the period: a cancellation, or a change of plan."""
        async with self._one_change(tenant):
            before = await self._living(tenant)
            return await self._begin(tenant, intentions.new("go_on", actor, subscription=before.subscription.id))

    async def run(self) -> None:
        """Finish what was begun by processes that are gone, and what Stripe did not answer; until cancelled."""
        while True:
            try:
                await self.finish_begun()
                self._state.good()
            except SidecarError as error:
                self._state.bad(cause=str(error))
            except Exception as error:
                log.exception("changes could not be finished")
                self._state.bad(cause=type(error).__name__)
            await asyncio.sleep(FINISH_EVERY_S)

    async def finish_begun(self) -> int:
        """Finish changes that nobody is at; how many were to be finished."""
        async with self._ledger.transaction() as tx:
            found = [str(row[0]) for row in await tx.rows("unfinished_changes", FINISHED_AT_ONCE)]
        for tenant in found:
            try:
                async with self._one_change(tenant):
                    pass
            except LedgerUnavailable:
                raise
            except SidecarError as error:
                log.info("a change is not finished yet", extra=fields(tenant=tenant, cause=str(error)))
        return len(found)

    @asynccontextmanager
    async def _one_change(self, tenant: str) -> AsyncIterator[Finished | None]:
        """Keep others out, and finish what was begun before; what that was, if it is finished now."""
        async with customers.one_change(self._ledger, tenant):
            async with self._ledger.transaction() as tx:
                left = await intentions.of_tenant(tx, tenant)
            yield await self._finish(tenant, left) if left is not None else None

    async def _begin(self, tenant: str, intention: Intention) -> Kept:
        """Note it, do it. What had no effect at all is forgotten again when it fails; the caller may ask anew."""
        async with self._ledger.transaction() as tx:
            await intentions.write(tx, tenant, intention)
        execution = Execution(self._mirror, self._flush, tenant, intention)
        try:
            return await self._carried_out(tenant, intention, execution)
        except (StripeUnavailable, LedgerUnavailable):
            if not execution.touched:
                await self._forget(tenant, intention)
            raise
        except SidecarError as error:
            await self._forget(tenant, intention, str(error) if execution.touched else "")
            raise

    async def _finish(self, tenant: str, left: Unfinished) -> Finished | None:
        """Finish what was begun by somebody else; what Stripe refuses now is told and forgotten."""
        intention = left.intention
        try:
            if intention.do == "subscribe" and left.age_s > DAY_S:
                raise Conflict("it was begun more than a day ago, and nobody waits for it any more")
            kept = await self._carried_out(tenant, intention, Execution(self._mirror, self._flush, tenant, intention))
        except (StripeUnavailable, LedgerUnavailable) as error:
            async with self._ledger.transaction() as tx:
                await intentions.failed(tx, tenant, left, str(error))
            raise
        except SidecarError as error:
            await self._forget(tenant, intention, str(error))
            return None
        log.info("a change was finished", extra=fields(tenant=tenant, change=intention.do))
        return Finished(intention, kept)

    async def _forget(self, tenant: str, intention: Intention, problem: str = "") -> None:
        """Forget an intention; with a problem, what was done of it stays half, and people are told."""
        async with self._ledger.transaction() as tx:
            await intentions.finish(tx, tenant, intention)
            if problem:
                detail = {"change": intention.do, "subscription": intention.subscription, "problem": problem[:1000]}
                await audit.write(tx, actor=intention.actor, action="billing.unfinished", tenant=tenant, detail=detail)
        if problem:
            told = "a change of a subscription cannot be finished; look at it"
            log.warning(told, extra=fields(tenant=tenant, change=intention.do, cause=problem))

    async def _carried_out(self, tenant: str, intention: Intention, execution: Execution) -> Kept:
        wish = intention.wish
        match intention.do:
            case "subscribe" if wish is not None:
                seen_by, raw = await self._subscribed(tenant, wish, intention, execution)
            case "change" if wish is not None:
                seen_by, raw = await execution.change((await self.terms(wish, tenant))[0], wish)
            case "change_later" if wish is not None:
                seen_by, raw = await execution.change_later((await self.terms(wish, tenant))[0], wish)
            case "go_on":
                seen_by, raw = await execution.go_on()
            case do:
                seen_by, raw = await execution.cancel(later=do == "cancel_later")
        return await self._kept(tenant, raw, seen_by, intention)

    async def _subscribed(
        self, tenant: str, wish: Wish, intention: Intention, execution: Execution
    ) -> tuple[int, dict[str, Any]]:
        """A new subscription, or the one that was made by a try whose answer was lost."""
        try:
            ended = await self.free_to_subscribe(tenant)
        except Conflict:
            async with self._ledger.transaction() as tx:
                found = await subscriptions.current(tx, tenant)
            if found is None or found.subscription.plan != wish.plan:
                raise
            seen_by = await self._mirror.look()
            with errors():
                there = await self._api.v1.subscriptions.retrieve_async(found.subscription.id, {"expand": ["schedule"]})
            return seen_by, there.to_dict()
        prices, automatic_tax, trial_days = await self.terms(wish, tenant)
        execution.touched = True
        customer = await customers.create(self._ledger, self._api, tenant, actor=intention.actor)
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
        return await self._create(tenant, params, ended)

    async def terms(self, wish: Wish, tenant: str) -> tuple[PlanPrices, bool, int]:
        """The tenant's prices of what is wished for, whether Stripe works out the tax, and the days of trial."""
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
        prices = await own_prices.priced(self._mirror, catalogue, plan, tenant, prices)
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

    async def _kept(self, tenant: str, raw: dict[str, Any], seen_by: int, intention: Intention) -> Kept:
        """Keep what came of an intention, and forget it, at once with the audit entry."""
        await self._mirror.keep_subscription(raw, seen_by, actor=intention.actor)
        async with self._ledger.transaction() as tx:
            kept = await subscriptions.current(tx, tenant)
            if kept is None:
                raise Conflict(f"the subscription {raw.get('id')} belongs to another tenant by now")
            one = kept.subscription
            detail = {"subscription": one.id, "plan": one.plan, "status": one.status}
            await audit.write(tx, actor=intention.actor, action=ACTIONS[intention.do], tenant=tenant, detail=detail)
            if intention.do == "change_later":
                await own_prices.arrange(tx, raw)
            await intentions.finish(tx, tenant, intention)
        return kept


def _same(left: Finished | None, asked: Intention) -> Kept | None:
    """What came of the same wish, when it was begun before: who heard nothing of it asks again."""
    if left is None or (left.intention.do, left.intention.wish) != (asked.do, asked.wish):
        return None
    return left.kept


def _occupied(tenant: str, subscription: str, status: str) -> Conflict:
    return Conflict(f"{tenant!r} has the subscription {subscription} ({status}); change that one, or end it first")


def _key(tenant: str, params: SubscriptionCreateParams, ended: Sequence[str], number: int) -> str:
    asked = msgspec.json.encode([tenant, params, ended, number], order="sorted")
    return f"quota-subscribe-{hashlib.sha256(asked).hexdigest()}"
