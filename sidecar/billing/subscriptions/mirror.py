"""What Stripe has, fetched and kept: customers, subscriptions and invoices, and what follows from them for tenants.

Guarantees: every call ends with what Stripe had at or after its start, whoever else looks at the same time: a number is
            taken before Stripe is asked (the look), and what was kept by a later number stays. So news may come twice,
            late and in any order.
Gives up:   customers that belong to no tenant here: what concerns them is passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sidecar.billing import customers
from sidecar.billing.stripe_api import StripeApi, errors
from sidecar.billing.subscriptions import invoices, subscriptions
from sidecar.billing.subscriptions.standing import living
from sidecar.billing.subscriptions.subscriptions import named
from sidecar.catalogue.model import Catalogue
from sidecar.clock import Clock
from sidecar.errors import LedgerUnavailable, SidecarError, StripeRefused, StripeUnavailable
from sidecar.ledger import audit
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction
from sidecar.logs import fields

ACTOR = subscriptions.ACTOR
LINES_PER_CALL = 100
LINES_MAX = 10_000
GRACES_AT_ONCE = 100
LOOK_AGAIN_S = 86_400
UNHEARD_AT_ONCE = 25
PUT_OFF_S = 3_600
NOT_FOUND = 404

log = logging.getLogger(__name__)

CatalogueInForce = Callable[[Transaction], Awaitable[Catalogue]]


class Mirror:
    """Keeps the ledger's picture of one Stripe account."""

    def __init__(self, ledger: Ledger, api: StripeApi, catalogue: CatalogueInForce, clock: Clock) -> None:
        self.ledger = ledger
        self.api = api
        self.catalogue = catalogue
        self.clock = clock

    async def look(self) -> int:
        """A number for what the next call of Stripe sees."""
        async with self.ledger.transaction() as tx:
            return await subscriptions.look(tx)

    async def customer(self, customer: str) -> bool:
        """Link a customer to the tenant it names, or forget one that was deleted; whether it is of a tenant.

        With a customer Stripe ends its subscriptions; they end here at once, whenever the news of them come.
        """
        seen_by = await self.look()
        if await customers.fetched(self.api, customer) is None:
            async with self.ledger.transaction() as tx:
                if tenant := await customers.tenant_of(tx, customer):
                    await subscriptions.lock(tx, tenant)
                    await subscriptions.end(tx, seen_by, customer=customer)
                    await subscriptions.settle(tx, await self.catalogue(tx), tenant, self.clock.wall_s())
                await customers.unlink(tx, customer, actor=ACTOR)
            return True
        return bool(await customers.recognized(self.ledger, self.api, customer, actor=ACTOR))

    async def subscription(self, subscription: str, *, with_invoice: bool = False) -> bool:
        """Fetch a subscription and give its tenant what it amounts to; whether it is of a tenant."""
        seen_by = await self.look()
        try:
            with errors():
                raw = (await self.api.v1.subscriptions.retrieve_async(subscription, {"expand": ["schedule"]})).to_dict()
        except StripeRefused as error:
            if error.status != NOT_FOUND or not await self._gone(subscription, seen_by):
                raise
            return True
        if with_invoice and (newest := named(raw.get("latest_invoice"))):
            await self.invoice(newest)
        return await self.keep_subscription(raw, seen_by)

    async def adopt_subscriptions(self, customer: str) -> int:
        """Keep every subscription that an adopted customer has or had; how many there are.

        Usage from before the adoption stays unbilled: somebody else billed it.
        """
        found = await self.listed(customer)
        for name in (str(raw["id"]) for raw in found):
            seen_by = await self.look()
            with errors():
                raw = (await self.api.v1.subscriptions.retrieve_async(name, {"expand": ["schedule"]})).to_dict()
            await self.keep_subscription(raw, seen_by, adopted=True)
        return len(found)

    async def listed(self, customer: str) -> list[dict[str, Any]]:
        """Every subscription that a customer has or had, as Stripe lists them."""
        with errors():
            page = await self.api.v1.subscriptions.list_async({"customer": customer, "status": "all", "limit": 100})
            return [found.to_dict() async for found in page.auto_paging_iter()]

    async def keep_subscription(
        self, raw: dict[str, Any], seen_by: int, *, actor: str = ACTOR, adopted: bool = False
    ) -> bool:
        """Keep a subscription as Stripe answered a call that began after the look.

        One that is seen for the first time has its tenant's usage billed from its start on, unless it is ``adopted``.
        """
        name = str(raw["id"])
        tenant = await customers.recognized(self.ledger, self.api, named(raw.get("customer")), actor=ACTOR)
        async with self.ledger.transaction() as tx:
            # The customer of a subscription that was kept before may be deleted by now.
            known = await subscriptions.tenant_of(tx, name)
            tenant = tenant or known
            if not tenant:
                return False
            await subscriptions.lock(tx, tenant)
            before = living(await subscriptions.of_tenant(tx, tenant))
            await subscriptions.keep(tx, tenant, raw, seen_by)
            if not known and not adopted:
                await subscriptions.bill_from_start(tx, tenant, raw)
            after = [one.id for one in living(await subscriptions.of_tenant(tx, tenant))]
            await subscriptions.settle(tx, await self.catalogue(tx), tenant, self.clock.wall_s(), actor=actor)
            if len(after) > max(1, len(before)):
                detail = {"subscriptions": after}
                await audit.write(tx, actor=actor, action="billing.two_subscriptions", tenant=tenant, detail=detail)
                told = "a tenant pays for more than one subscription; end all but one"
                log.warning(told, extra=fields(tenant=tenant, subscriptions=after))
        return True

    async def invoice(self, invoice: str) -> bool:
        """Fetch an invoice with all its lines; whether it is of a tenant. A draft that is gone is forgotten."""
        seen_by = await self.look()
        try:
            with errors():
                raw = (await self.api.v1.invoices.retrieve_async(invoice)).to_dict()
        except StripeRefused as error:
            if error.status != NOT_FOUND:
                raise
            async with self.ledger.transaction() as tx:
                await invoices.drop(tx, invoice)
            return True
        customer = named(raw.get("customer"))
        tenant = await customers.recognized(self.ledger, self.api, customer, actor=ACTOR)
        if not tenant:
            async with self.ledger.transaction() as tx:
                tenant = await customers.former_tenant_of(tx, customer)
        if not tenant:
            return False
        lines = await self._lines(raw)
        async with self.ledger.transaction() as tx:
            await subscriptions.lock(tx, tenant)
            await invoices.keep(tx, tenant, raw, lines, seen_by)
            # Since when something is owed may have changed, and with it the end of a grace.
            await subscriptions.settle(tx, await self.catalogue(tx), tenant, self.clock.wall_s())
        return True

    async def checkout(self, session: str) -> bool:
        """Link the customer of a finished Checkout and fetch its subscription; whether it is of a tenant."""
        with errors():
            raw = (await self.api.v1.checkout.sessions.retrieve_async(session)).to_dict()
        customer = named(raw.get("customer"))
        if not customer:
            return False
        # Never by `client_reference_id`: on a payment link whoever pays writes what it says.
        tenant = await customers.recognized(self.ledger, self.api, customer, actor=ACTOR)
        subscription = named(raw.get("subscription"))
        return await self.subscription(subscription) if tenant and subscription else bool(tenant)

    async def end_graces(self) -> int:
        """Settle tenants whose grace after a failed payment is over: nobody sends word of that. How many there were."""
        async with self.ledger.transaction() as tx:
            over = [row[0] for row in await tx.rows("graces_over", GRACES_AT_ONCE)]
        failed: SidecarError | None = None
        for tenant in over:
            try:
                async with self.ledger.transaction() as tx:
                    await subscriptions.settle(tx, await self.catalogue(tx), tenant, self.clock.wall_s())
            except LedgerUnavailable:
                raise
            except SidecarError as error:
                failed = error
        if failed is not None:
            raise failed
        return len(over)

    async def look_again(self) -> int:
        """Fetch living subscriptions that nobody heard of for a day, each with its newest invoice; how many there were.

        Stripe repeats news for three days only: who was away for longer finds out by this. One that cannot be fetched
        goes to the end of the line, and the others have their turn.
        """
        async with self.ledger.transaction() as tx:
            unheard = [str(row[0]) for row in await tx.rows("subscriptions_unheard_of", LOOK_AGAIN_S, UNHEARD_AT_ONCE)]
        for subscription in unheard:
            try:
                await self.subscription(subscription, with_invoice=True)
            except LedgerUnavailable:
                raise
            except Exception as error:
                async with self.ledger.transaction() as tx:
                    await tx.rows("put_off_subscription", subscription, LOOK_AGAIN_S - PUT_OFF_S)
                if isinstance(error, StripeUnavailable):
                    raise
                why = f"{type(error).__name__}: {error}"
                log.warning("a subscription cannot be looked at", extra=fields(subscription=subscription, cause=why))
        return len(unheard)

    async def _gone(self, subscription: str, seen_by: int) -> bool:
        """End a subscription that Stripe does not know any more; False when it is not certain, or never was here.

        Certain is what Stripe says while it knows the customer, if only as a deleted one: the key of another account
        would find nothing at all, and nobody may lose access by that.
        """
        async with self.ledger.transaction() as tx:
            tenant = await subscriptions.tenant_of(tx, subscription)
            found = [one for one in await subscriptions.of_tenant(tx, tenant) if one.id == subscription]
        if not found or not await customers.was_ever(self.api, found[0].customer):
            return False
        async with self.ledger.transaction() as tx:
            await subscriptions.lock(tx, tenant)
            await subscriptions.end(tx, seen_by, subscription=subscription)
            await subscriptions.settle(tx, await self.catalogue(tx), tenant, self.clock.wall_s())
        return True

    async def _lines(self, raw: dict[str, Any]) -> list[dict[str, Any]]:
        """Every line: the object itself carries only the first ones."""
        inside = raw.get("lines") or {}
        lines = list(inside.get("data") or ())
        more = bool(inside.get("has_more"))
        while more and len(lines) < LINES_MAX:
            with errors():
                page = await self.api.v1.invoices.line_items.list_async(
                    str(raw["id"]), {"limit": LINES_PER_CALL, "starting_after": str(lines[-1]["id"])}
                )
            lines += [line.to_dict() for line in page.data]
            more = page.has_more
        return lines
