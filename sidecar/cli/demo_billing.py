"""The demo tenants as customers of the Stripe stand-in: offered what the catalogue offers, subscribed to their plans.

Guarantees: at every start only what is missing is made; what somebody changed is left alone.
Gives up:   billing in this `sidecar dev`, with a warning, where the catalogue cannot be offered at Stripe as it is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sidecar.billing.shop.setup import set_up
from sidecar.billing.stripe_api import StripeApi
from sidecar.billing.subscriptions import subscriptions
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.billing.subscriptions.subscribing import Subscribing, Wish
from sidecar.cli.demo import ACTOR, PLANS
from sidecar.control.catalogues import Catalogues
from sidecar.errors import SidecarError
from sidecar.ledger import tenants
from sidecar.logs import fields

if TYPE_CHECKING:
    from sidecar.catalogue.model import Catalogue
    from sidecar.clock import Clock
    from sidecar.ledger.connection import Ledger
    from sidecar.settings import Settings

log = logging.getLogger(__name__)

# Nobody here enters a card: invoices are sent, to be paid within this time.
DAYS_UNTIL_DUE = 30


async def bill(ledger: Ledger, found: Settings, catalogue: Catalogue, clock: Clock) -> None:
    """Set the stand-in up and subscribe the demo tenants that have no subscription yet."""
    api = StripeApi.open(found.stripe_key, found.stripe_url)
    try:
        async with ledger.transaction() as tx:
            await set_up(tx, api, catalogue, pause_s=0)
        subscribing = Subscribing(Mirror(ledger, api, Catalogues().in_force, clock), _nothing_to_send, "none")
        async with ledger.transaction() as tx:
            rows = await tenants.by_ids(tx, [f"demo-{plan}" for plan in PLANS])
            missing = [row for row in rows if await subscriptions.current(tx, row.tenant) is None]
        for row in missing:
            wish = Wish(plan=row.plan, trial_days=0, days_until_due=DAYS_UNTIL_DUE)
            await subscribing.subscribe(row.tenant, wish, actor=ACTOR)
    except SidecarError as error:
        log.warning("the demo tenants are not billed", extra=fields(cause=str(error)))
    finally:
        await api.close()


async def _nothing_to_send(_tenant: str, /) -> int:
    """What a new subscription replaces was never billed."""
    return 0
