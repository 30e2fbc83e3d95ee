"""Customers at Stripe: one for each tenant that is billed, made here or adopted.

Guarantees: a tenant has at most one customer and a customer at most one tenant; one change of a tenant's billing at a
            time. Of a tenant and its parents one has a customer, since what it uses counts for all of them. A customer
            whose answer was lost is found again by its metadata when Stripe tells of it.
Gives up:   names, addresses and cards: those stay at Stripe and are read there when somebody asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from sidecar.billing.stripe_api import StripeApi, errors
from sidecar.errors import Conflict, NotFound, StripeRefused, StripeUnavailable
from sidecar.ledger import audit, tenants
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction

if TYPE_CHECKING:
    from stripe.params import CustomerCreateParams

TENANT_KEY = "tenant"  # in the metadata of what is made at Stripe
CHANGE_S = 300  # longer than Stripe's calls of one change can take together
NOT_FOUND = 404
REPLAYS_MAX = 20


class Customer(Struct, frozen=True):
    """A tenant's customer at Stripe."""

    tenant: str
    customer: str
    created_s: int


class PaymentMethod(Struct, frozen=True, kw_only=True):
    """What a customer pays with, as people recognize it; nothing one could pay with."""

    type: str
    brand: str = ""
    last4: str = ""
    exp_month: int = 0
    exp_year: int = 0


@asynccontextmanager
async def one_change(ledger: Ledger, tenant: str) -> AsyncIterator[None]:
    """Keep every other change of the tenant's billing out; Conflict while one is under way."""
    async with ledger.transaction() as tx:
        await tenants.show(tx, tenant)
        if not await tx.value("begin_billing_change", tenant, CHANGE_S):
            raise Conflict(f"the billing of {tenant!r} is being changed right now; try again in a moment")
    try:
        yield
    finally:
        async with ledger.transaction() as tx:
            await tx.rows("end_billing_change", tenant)


async def of_tenant(tx: Transaction, tenant: str) -> Customer:
    """The customer of a tenant; NotFound when it is not billed."""
    row = await tx.row("customer_of", tenant)
    if row is None:
        raise NotFound(f"tenant {tenant!r} has no customer at Stripe; make one with POST .../customer")
    return Customer(*row)


async def tenant_of(tx: Transaction, customer: str) -> str:
    """The tenant of a customer; empty when there is none."""
    return str(await tx.value("tenant_of_customer", customer) or "")


async def former_tenant_of(tx: Transaction, customer: str) -> str:
    """The tenant whose customer this was before it was deleted: its last invoices are told of later."""
    return str(await tx.value("tenant_of_former_customer", customer) or "")


async def link(tx: Transaction, tenant: str, customer: str, *, actor: str) -> None:
    """Make the customer that of the tenant; Conflict when one of them has another one."""
    before = await tx.row("customer_of", tenant)
    if before is None:
        await _free_in_line(tx, tenant)
    # Asked once more where it did not: Stripe's news of a customer just made may be linking it at this very moment.
    if not await tx.value("link_customer", tenant, customer) and await tenant_of(tx, customer) != tenant:
        raise Conflict(f"{tenant!r} has another customer, or {customer} belongs to another tenant; look at both")
    if before is None:
        await audit.write(tx, actor=actor, action="billing.customer", tenant=tenant, detail={"customer": customer})


async def _free_in_line(tx: Transaction, tenant: str) -> None:
    """Conflict when a parent of the tenant, or one of those below it, has a customer."""
    await tx.rows("lock_families")
    below, above = (await tx.rows("customers_in_line", tenant, (await tenants.show(tx, tenant)).parent))[0]
    # Its own is that of somebody who links it at the same moment.
    if (other := below or above) and other != tenant:
        raise Conflict(f"{other!r} is billed, and what {tenant!r} and it use would be paid twice; bill one of them")


async def unlink(tx: Transaction, customer: str, *, actor: str) -> None:
    """Forget a customer that is deleted at Stripe."""
    tenant = await tx.value("drop_customer", customer)
    if tenant:
        detail = {"customer": customer}
        await audit.write(tx, actor=actor, action="billing.customer_deleted", tenant=str(tenant), detail=detail)


async def create(
    ledger: Ledger, api: StripeApi, tenant: str, *, actor: str, email: str = "", name: str = ""
) -> Customer:
    """The tenant's customer; made when it has none. To be called inside ``one_change``."""
    async with ledger.transaction() as tx:
        row = await tx.row("customer_of", tenant)
        if row is None:
            await _free_in_line(tx, tenant)
    if row is not None:
        return Customer(*row)
    params: CustomerCreateParams = {"metadata": {TENANT_KEY: tenant}, "description": f"tenant {tenant}"}
    if email:
        params["email"] = email
    if name:
        params["name"] = name
    return await _linked(ledger, tenant, await _made(ledger, api, tenant, params), actor)


async def _made(ledger: Ledger, api: StripeApi, tenant: str, params: CustomerCreateParams) -> str:
    """Make a customer under a key that follows from what is asked: a call whose answer was lost made the same one.

    An error that Stripe repeats is of a call that has ended, and the next key asks anew.
    """
    async with ledger.transaction() as tx:
        ledger_id, former = (await tx.rows("customer_key", tenant))[0]
    for number in range(REPLAYS_MAX):
        asked = msgspec.json.encode([ledger_id, tenant, former, params, number], order="sorted")
        key = f"quota-customer-{hashlib.sha256(asked).hexdigest()}"
        try:
            with errors():
                made = await api.v1.customers.create_async(params, {"idempotency_key": key})
        except (StripeRefused, StripeUnavailable) as error:
            if not error.replayed:
                raise
        else:
            return made.id
    raise Conflict(f"Stripe repeats {REPLAYS_MAX} old refusals of this customer; try again tomorrow")


async def adopt(ledger: Ledger, api: StripeApi, tenant: str, customer: str, *, actor: str) -> Customer:
    """Make a customer that exists at Stripe that of the tenant. To be called inside ``one_change``."""
    found = await fetched(api, customer)
    if found is None:
        raise NotFound(f"there is no customer {customer} at Stripe")
    linked = await _linked(ledger, tenant, customer, actor)
    if _tenant_named(found) != tenant:
        with errors():
            await api.v1.customers.update_async(customer, {"metadata": {TENANT_KEY: tenant}})
    return linked


async def recognized(ledger: Ledger, api: StripeApi, customer: str, *, actor: str) -> str:
    """The tenant of a customer that may be new here: by its link, else by the tenant its metadata names; else empty."""
    async with ledger.transaction() as tx:
        tenant = await tenant_of(tx, customer)
    if tenant:
        return tenant
    found = await fetched(api, customer)
    named = _tenant_named(found) if found is not None else ""
    if not named:
        return ""
    async with ledger.transaction() as tx:
        if not await tenants.by_ids(tx, [named]) or await tx.row("customer_of", named) is not None:
            return await tenant_of(tx, customer)
        await link(tx, named, customer, actor=actor)
    return named


async def fetched(api: StripeApi, customer: str) -> dict[str, Any] | None:
    """A customer as Stripe has it; None when it is deleted or was never there."""
    found = await _answered(api, customer)
    return None if found is None or found.get("deleted") else found


async def was_ever(api: StripeApi, customer: str) -> bool:
    """Whether the account has, or had, the customer."""
    return await _answered(api, customer) is not None


async def payment_method(api: StripeApi, customer: str) -> PaymentMethod | None:
    """What the customer pays with by default, else the newest one on file; None when there is none."""
    with errors():
        found = (
            await api.v1.customers.retrieve_async(customer, {"expand": ["invoice_settings.default_payment_method"]})
        ).to_dict()
    chosen = (found.get("invoice_settings") or {}).get("default_payment_method")
    if not isinstance(chosen, dict):
        with errors():
            on_file = await api.v1.customers.payment_methods.list_async(customer, {"limit": 1})
        chosen = on_file.data[0].to_dict() if on_file.data else None
    if chosen is None:
        return None
    kind = str(chosen.get("type", ""))
    about = chosen.get(kind) or {}
    return PaymentMethod(
        type=kind,
        brand=str(about.get("brand") or about.get("bank_name") or ""),
        last4=str(about.get("last4") or ""),
        exp_month=int(about.get("exp_month") or 0),
        exp_year=int(about.get("exp_year") or 0),
    )


async def _answered(api: StripeApi, customer: str) -> dict[str, Any] | None:
    try:
        with errors():
            return (await api.v1.customers.retrieve_async(customer)).to_dict()
    except StripeRefused as error:
        if error.status == NOT_FOUND:
            return None
        raise


async def _linked(ledger: Ledger, tenant: str, customer: str, actor: str) -> Customer:
    async with ledger.transaction() as tx:
        await link(tx, tenant, customer, actor=actor)
        return await of_tenant(tx, tenant)


def _tenant_named(found: dict[str, Any]) -> str:
    return str((found.get("metadata") or {}).get(TENANT_KEY) or "")
