"""The door for what Stripe sends: `/webhooks/stripe`, guarded by signatures instead of a token.

Guarantees: 2xx only after the event is in the ledger; a bad signature or body is 400, a body beyond the bound 413, and
            while Postgres is away the answer is 503, after which Stripe sends the event again (for three days).
Gives up:   bodies beyond ``webhooks.BODY_BYTES_MAX``; Stripe's are far smaller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from aiohttp import web

from sidecar.billing.webhooks import webhooks
from sidecar.billing.webhooks.webhooks import BODY_BYTES_MAX, EventRefused, WebhookCounters
from sidecar.clock import Clock
from sidecar.control.answers import json_answer, problem
from sidecar.errors import BillingOff
from sidecar.ledger.connection import Ledger
from sidecar.logs import fields

PATH = "/webhooks/stripe"

log = logging.getLogger(__name__)


class Receiver:
    """Takes events for one account; ``stored`` is called after each new one."""

    def __init__(
        self,
        ledger: Ledger,
        secrets: Sequence[str],
        clock: Clock,
        counters: WebhookCounters,
        stored: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._secrets = secrets
        self._clock = clock
        self._counters = counters
        self._stored = stored

    async def receive(self, request: web.Request) -> web.Response:
        """Check, store, answer."""
        if not self._secrets:
            raise BillingOff("webhooks are off: set SIDECAR_STRIPE_WEBHOOK_SECRETS (or _FILE) for the role control")
        body = await _body(request)
        if body is None:
            self._counters.refused += 1
            return problem(413, "body too large", f"an event has at most {BODY_BYTES_MAX} bytes")
        try:
            webhooks.verify(body, request.headers.get("stripe-signature", ""), self._secrets, self._clock.wall_s())
            event = webhooks.read(body)
        except EventRefused as error:
            self._counters.refused += 1
            log.warning("webhook is refused", extra=fields(cause=str(error)))
            return problem(400, "no event", str(error))
        new = await webhooks.keep(self._ledger, event)
        if new:
            self._counters.received += 1
            self._stored()
        else:
            self._counters.repeated += 1
        return json_answer({"received": event.id})


def routes(receiver: Receiver | None) -> list[web.RouteDef]:
    """The one path; without a receiver it says that webhooks are off."""

    async def off(_: web.Request) -> web.StreamResponse:
        raise BillingOff

    return [web.post(PATH, off if receiver is None else receiver.receive)]


async def _body(request: web.Request) -> bytes | None:
    """The raw body, as it was signed; None when it is too large."""
    if (request.content_length or 0) > BODY_BYTES_MAX:
        return None
    body = bytearray()
    async for chunk in request.content.iter_chunked(65_536):
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            return None
    return bytes(body)
