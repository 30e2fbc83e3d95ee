"""The invoice that is coming, on the billing API; read from the ledger alone, so it is there without Stripe."""

from __future__ import annotations

from aiohttp import web

from sidecar.billing.subscriptions import projection
from sidecar.clock import Clock
from sidecar.control.answers import json_answer, tenant_of
from sidecar.control.catalogues import Catalogues
from sidecar.ledger.connection import Ledger


def routes(ledger: Ledger, catalogues: Catalogues, clock: Clock) -> list[web.RouteDef]:
    """``GET /api/v1/tenants/{tenant}/invoice/upcoming``."""

    async def upcoming(request: web.Request) -> web.Response:
        async with ledger.transaction() as tx:
            catalogue = await catalogues.in_force(tx)
            return json_answer(await projection.upcoming(tx, catalogue, tenant_of(request), clock.wall_s()))

    return [web.get("/api/v1/tenants/{tenant}/invoice/upcoming", upcoming)]
