"""The part of the billing API about money: customers, subscriptions, Checkout and portal, invoices.

Guarantees: amounts are in the currency's minor unit, exactly; lists are read from the ledger, so they work while Stripe
            is away. Without a Stripe key every path here answers 501 and says how to turn billing on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from aiohttp import web
from msgspec import Struct

from sidecar.billing import customers
from sidecar.billing.subscriptions import checkout, invoices, subscriptions
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscribing import Proration, Subscribing, TrialEnd, When, Wish
from sidecar.billing.subscriptions.subscriptions import Kept
from sidecar.control.answers import ACTOR, body_of, json_answer, tenant_of
from sidecar.errors import BillingOff, Conflict, NotFound
from sidecar.ledger import tenants
from sidecar.ledger.connection import Ledger

PAGE_MAX = invoices.PAGE_MAX
BASE = "/api/v1/tenants/{tenant}"
Handler = Callable[["_Billing", web.Request], Awaitable[web.StreamResponse]]
Route = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Desk(Struct, frozen=True):
    """What billing needs where it is on."""

    mirror: Mirror
    subscribing: Subscribing


class PutCustomer(Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST .../customer. ``customer`` adopts one that exists at Stripe."""

    customer: str = ""
    email: str = ""
    name: str = ""


class Subscribe(Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST .../subscription. ``days_until_due`` sends invoices instead of charging a card."""

    plan: str
    annual: bool = False
    currency: str = ""
    trial_days: int | None = None
    trial_end: TrialEnd = "pause"
    days_until_due: int | None = None


class Change(Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of PATCH .../subscription. ``keep`` takes back what waits for the end of the period."""

    plan: str = ""
    annual: bool = False
    when: When = "now"
    proration: Proration | None = None
    force: bool = False
    keep: bool = False


class Checkout(Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST .../checkout."""

    plan: str
    success_url: str
    cancel_url: str
    annual: bool = False
    currency: str = ""
    trial_days: int | None = None
    trial_end: TrialEnd = "pause"


class Portal(Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST .../portal."""

    return_url: str = ""


class _Cancel(Struct, forbid_unknown_fields=True, kw_only=True):
    when: When = "period_end"
    proration: Proration | None = None
    force: bool = False


class _Filter(Struct, forbid_unknown_fields=True, kw_only=True):
    status: Literal["", "draft", "open", "paid", "uncollectible", "void"] = ""
    before: str = ""
    limit: int = 20


def routes(ledger: Ledger, desk: Desk | None) -> list[web.RouteDef]:
    """The paths; without a desk each of them says that billing is off."""
    billing = _Billing(ledger, desk) if desk is not None else None

    def route(handler: Handler) -> Route:
        async def handle(request: web.Request) -> web.StreamResponse:
            if billing is None:
                raise BillingOff
            return await handler(billing, request)

        return handle

    return [
        web.get(f"{BASE}/customer", route(_Billing.show_customer)),
        web.post(f"{BASE}/customer", route(_Billing.put_customer)),
        web.get(f"{BASE}/payment-method", route(_Billing.payment_method)),
        web.get(f"{BASE}/subscription", route(_Billing.show_subscription)),
        web.post(f"{BASE}/subscription", route(_Billing.subscribe)),
        web.patch(f"{BASE}/subscription", route(_Billing.change)),
        web.delete(f"{BASE}/subscription", route(_Billing.cancel)),
        web.get(f"{BASE}/plan-changes", route(_Billing.plan_changes)),
        web.post(f"{BASE}/checkout", route(_Billing.checkout)),
        web.post(f"{BASE}/portal", route(_Billing.portal)),
        web.get(f"{BASE}/invoices", route(_Billing.invoices)),
    ]


class _Billing:
    """Handlers over one account."""

    def __init__(self, ledger: Ledger, desk: Desk) -> None:
        self._ledger = ledger
        self._mirror = desk.mirror
        self._subscribing = desk.subscribing

    async def show_customer(self, request: web.Request) -> web.Response:
        async with self._ledger.transaction() as tx:
            return json_answer(await customers.of_tenant(tx, tenant_of(request)))

    async def put_customer(self, request: web.Request) -> web.Response:
        wanted, tenant = await body_of(request, PutCustomer), tenant_of(request)
        async with customers.one_change(self._ledger, tenant):
            if wanted.customer:
                found = await customers.adopt(
                    self._ledger, self._mirror.api, tenant, wanted.customer, actor=request[ACTOR]
                )
            else:
                found = await customers.create(
                    self._ledger, self._mirror.api, tenant, actor=request[ACTOR], email=wanted.email, name=wanted.name
                )
        if wanted.customer:
            await self._mirror.adopt_subscriptions(found.customer)
        return json_answer(found)

    async def payment_method(self, request: web.Request) -> web.Response:
        async with self._ledger.transaction() as tx:
            customer = await customers.of_tenant(tx, tenant_of(request))
        return json_answer({"payment_method": await customers.payment_method(self._mirror.api, customer.customer)})

    async def show_subscription(self, request: web.Request) -> web.Response:
        tenant = tenant_of(request)
        async with self._ledger.transaction() as tx:
            found = await subscriptions.current(tx, tenant)
        if found is None:
            await self._known(tenant)
            raise NotFound(f"tenant {tenant!r} has no subscription; subscribe it with POST .../subscription")
        return await self._shown(found)

    async def subscribe(self, request: web.Request) -> web.Response:
        wanted = await body_of(request, Subscribe)
        wish = Wish(
            plan=wanted.plan,
            annual=wanted.annual,
            currency=wanted.currency,
            trial_days=wanted.trial_days,
            trial_end=wanted.trial_end,
            days_until_due=wanted.days_until_due,
        )
        return await self._shown(
            await self._subscribing.subscribe(tenant_of(request), wish, actor=request[ACTOR]), status=201
        )

    async def change(self, request: web.Request) -> web.Response:
        wanted, tenant = await body_of(request, Change), tenant_of(request)
        if wanted.keep is bool(wanted.plan):
            raise Conflict('name a "plan" to change to, or "keep": true to go on as it is')
        if wanted.keep:
            return await self._shown(await self._subscribing.go_on(tenant, actor=request[ACTOR]))
        changed = await self._subscribing.change(
            tenant,
            wanted.plan,
            annual=wanted.annual,
            when=wanted.when,
            proration=wanted.proration,
            force=wanted.force,
            actor=request[ACTOR],
        )
        return await self._shown(changed)

    async def cancel(self, request: web.Request) -> web.Response:
        wanted = msgspec.convert(dict(request.query), _Cancel, strict=False)
        cancelled = await self._subscribing.cancel(
            tenant_of(request), when=wanted.when, proration=wanted.proration, force=wanted.force, actor=request[ACTOR]
        )
        return await self._shown(cancelled)

    async def plan_changes(self, request: web.Request) -> web.Response:
        tenant = tenant_of(request)
        await self._known(tenant)
        async with self._ledger.transaction() as tx:
            return json_answer({"plan_changes": await tenants.plan_changes(tx, tenant)})

    async def checkout(self, request: web.Request) -> web.Response:
        wanted = await body_of(request, Checkout)
        wish = Wish(
            plan=wanted.plan,
            annual=wanted.annual,
            currency=wanted.currency,
            trial_days=wanted.trial_days,
            trial_end=wanted.trial_end,
        )
        page = await checkout.checkout(
            self._mirror,
            self._subscribing,
            tenant_of(request),
            wish,
            success_url=wanted.success_url,
            cancel_url=wanted.cancel_url,
            actor=request[ACTOR],
        )
        return json_answer(page, status=201)

    async def portal(self, request: web.Request) -> web.Response:
        wanted = await body_of(request, Portal)
        page = await checkout.portal(self._mirror, tenant_of(request), return_url=wanted.return_url)
        return json_answer(page, status=201)

    async def invoices(self, request: web.Request) -> web.Response:
        wanted, tenant = msgspec.convert(dict(request.query), _Filter, strict=False), tenant_of(request)
        await self._known(tenant)
        most = min(max(1, wanted.limit), PAGE_MAX)
        async with self._ledger.transaction() as tx:
            found = await invoices.of_tenant(tx, tenant, status=wanted.status, before=wanted.before, most=most)
        return json_answer({"invoices": found, "more": len(found) == most})

    async def _known(self, tenant: str) -> None:
        async with self._ledger.transaction() as tx:
            await tenants.show(tx, tenant)

    async def _shown(self, found: Kept, status: int = 200) -> web.Response:
        """A subscription, its items, and what the tenant has by it now."""
        async with self._ledger.transaction() as tx:
            row = await tenants.show(tx, found.subscription.tenant)
        answer: dict[str, Any] = msgspec.to_builtins(found.subscription)
        answer["items"] = found.items
        answer["now"] = {"plan": row.plan, "status": row.status, "status_until_s": row.status_until_s}
        return json_answer(answer, status=status)
