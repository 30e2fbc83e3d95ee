"""Pages at Stripe where people pay and look after their billing: Checkout and the customer portal.

Guarantees: Checkout only starts for a tenant without a living subscription, and closes the pages that were open for it:
            two of them would make two subscriptions. It has the same prices, trial and tax as a subscription made
            here; nothing is given before Stripe says that it was completed.
            In the portal nobody exchanges a plan or ends it at once: no usage would be sent before.
Gives up:   what else the portal lets people do: that is set at Stripe, and its effects arrive as news.
Source: https://docs.stripe.com/api/checkout/sessions/create, https://docs.stripe.com/api/customer_portal/sessions/create
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from sidecar.billing import customers, objects
from sidecar.billing.stripe_api import errors
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscribing import Subscribing, Wish, new_items
from sidecar.ledger import audit

if TYPE_CHECKING:
    from stripe.params.billing_portal import ConfigurationCreateParamsFeatures as Features
    from stripe.params.billing_portal import SessionCreateParams as PortalParams
    from stripe.params.checkout import SessionCreateParams as CheckoutParams


PORTAL = "portal"
FEATURES: Features = {
    "customer_update": {"enabled": True, "allowed_updates": ["address", "email", "name", "phone", "tax_id"]},
    "invoice_history": {"enabled": True},
    "payment_method_update": {"enabled": True},
    "subscription_cancel": {"enabled": True, "mode": "at_period_end"},
    "subscription_update": {"enabled": False},
}


class Page(Struct, frozen=True):
    """A page to send somebody to; it works for a short time and for one customer."""

    id: str
    url: str
    expires_s: int = 0


async def checkout(
    mirror: Mirror, subscribing: Subscribing, tenant: str, wish: Wish, *, success_url: str, cancel_url: str, actor: str
) -> Page:
    """A page on which the tenant subscribes and pays."""
    async with customers.one_change(mirror.ledger, tenant):
        await subscribing.free_to_subscribe(tenant)
        prices, automatic_tax, trial_days = await subscribing.terms(wish, tenant)
        customer = await customers.create(mirror.ledger, mirror.api, tenant, actor=actor)
        params: CheckoutParams = {
            "mode": "subscription",
            "customer": customer.customer,
            "client_reference_id": tenant,
            "line_items": new_items(prices, wish),
            "success_url": success_url,
            "cancel_url": cancel_url,
            "subscription_data": {"metadata": {customers.TENANT_KEY: tenant, "plan": wish.plan}},
        }
        if wish.currency:
            params["currency"] = wish.currency
        if automatic_tax:
            params["automatic_tax"] = {"enabled": True}
            params["customer_update"] = {"address": "auto"}
        if trial_days:
            params["subscription_data"]["trial_period_days"] = trial_days
            params["subscription_data"]["trial_settings"] = {"end_behavior": {"missing_payment_method": wish.trial_end}}
            params["payment_method_collection"] = "if_required"
        with errors():
            made = await mirror.api.v1.checkout.sessions.create_async(params)
        async with mirror.ledger.transaction() as tx:
            detail = {"plan": wish.plan, "session": made.id}
            await audit.write(tx, actor=actor, action="billing.checkout", tenant=tenant, detail=detail)
    return Page(made.id, made.url or "", made.expires_at or 0)


async def portal(mirror: Mirror, tenant: str, *, return_url: str = "") -> Page:
    """A page on which the tenant sees invoices and changes how it pays."""
    async with mirror.ledger.transaction() as tx:
        customer = await customers.of_tenant(tx, tenant)
    params: PortalParams = {"customer": customer.customer, "configuration": await _configuration(mirror)}
    if return_url:
        params["return_url"] = return_url
    with errors():
        made = await mirror.api.v1.billing_portal.sessions.create_async(params)
    return Page(made.id, made.url)


async def _configuration(mirror: Mirror) -> str:
    """What people may do in the portal: found by its mark, so that it may be changed at Stripe, or made."""
    configurations = mirror.api.v1.billing_portal.configurations
    with errors():
        page = await configurations.list_async({"active": True, "limit": 100})
        async for one in page.auto_paging_iter():
            if one.to_dict().get("metadata", {}).get(objects.MARK) == PORTAL:
                return one.id
        key = f"quota-portal-{mirror.clock.wall_s() // 86_400}"
        made = await configurations.create_async(
            {"features": FEATURES, "metadata": {objects.MARK: PORTAL}}, {"idempotency_key": key}
        )
    return made.id
