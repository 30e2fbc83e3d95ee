"""What Stripe has, fetched and kept: customers, subscriptions and invoices, and what follows from them for tenants.

Guarantees: every call ends with what Stripe had at or after its start, whoever else looks at the same time: a number is
            taken before Stripe is asked (the look), and what was kept by a later number stays. So news may come twice,
            late and in any order.
Gives up:   customers that belong to no tenant here: what concerns them is passed over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sidecar.billing import customers, invoices, subscriptions
from sidecar.billing.stripe_api import StripeApi, errors
from sidecar.billing.subscriptions import named
from sidecar.catalogue.model import Catalogue
from sidecar.clock import Clock
from sidecar.errors import StripeRefused
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction

ACTOR = subscriptions.ACTOR
LINES_PER_CALL = 100
LINES_MAX = 10_000
GRACES_AT_ONCE = 100
LOOK_AGAIN_S = 86_400
UNHEARD_AT_ONCE = 25
NOT_FOUND = 404

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
        """Link a customer to the tenant it names, or forget one that was deleted; whether it is of a tenant."""
        if await customers.fetched(self.api, customer) is None:
            async with self.ledger.transaction() as tx:
                await customers.unlink(tx, customer, actor=ACTOR)
            return True
        return bool(await customers.recognized(self.ledger, self.api, customer, actor=ACTOR))

    async def subscription(self, subscription: str, *, with_invoice: bool = False) -> bool:
        """Fetch a subscription and give its tenant what it amounts to; whether it is of a tenant."""
        seen_by = await self.look()
        with errors():
            raw = (await self.api.v1.subscriptions.retrieve_async(subscription, {"expand": ["schedule"]})).to_dict()
        if with_invoice and (newest := named(raw.get("latest_invoice"))):
            await self.invoice(newest)
        return await self.keep_subscription(raw, seen_by)

    async def subscriptions_of(self, customer: str) -> int:
        """Fetch every subscription that a customer has or had; how many there are."""
        with errors():
            page = await self.api.v1.subscriptions.list_async({"customer": customer, "status": "all", "limit": 100})
            names = [str(found.id) async for found in page.auto_paging_iter()]
        for name in names:
            await self.subscription(name)
        return len(names)

    async def keep_subscription(self, raw: dict[str, Any], seen_by: int, *, actor: str = ACTOR) -> bool:
        """Keep a subscription as Stripe answered a call that began after the look."""
        tenant = await customers.recognized(self.ledger, self.api, named(raw.get("customer")), actor=ACTOR)
        if not tenant:
            return False
        async with self.ledger.transaction() as tx:
            await subscriptions.lock(tx, tenant)
            await subscriptions.keep(tx, tenant, raw, seen_by)
            await subscriptions.settle(tx, await self.catalogue(tx), tenant, self.clock.wall_s(), actor=actor)
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
        tenant = await customers.recognized(self.ledger, self.api, named(raw.get("customer")), actor=ACTOR)
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
        tenant = await customers.recognized(self.ledger, self.api, customer, actor=ACTOR)
        if not tenant and (wanted := str(raw.get("client_reference_id") or "")):
            async with self.ledger.transaction() as tx:
                known = await tx.rows("tenants_by_id", [wanted])
                if known and await tx.row("customer_of", wanted) is None:
                    await customers.link(tx, wanted, customer, actor=ACTOR)
                    tenant = wanted
        subscription = named(raw.get("subscription"))
        return await self.subscription(subscription) if tenant and subscription else bool(tenant)

    async def end_graces(self) -> int:
        """Settle tenants whose grace after a failed payment is over: nobody sends word of that. How many there were."""
        async with self.ledger.transaction() as tx:
            over = [row[0] for row in await tx.rows("graces_over", GRACES_AT_ONCE)]
        for tenant in over:
            async with self.ledger.transaction() as tx:
                await subscriptions.settle(tx, await self.catalogue(tx), tenant, self.clock.wall_s())
        return len(over)

    async def look_again(self) -> int:
        """Fetch living subscriptions that nobody heard of for a day, each with its newest invoice; how many there were.

        Stripe repeats news for three days only: who was away for longer finds out by this.
        """
        async with self.ledger.transaction() as tx:
            unheard = [str(row[0]) for row in await tx.rows("subscriptions_unheard_of", LOOK_AGAIN_S, UNHEARD_AT_ONCE)]
        for subscription in unheard:
            await self.subscription(subscription, with_invoice=True)
        return len(unheard)

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
