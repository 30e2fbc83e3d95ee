"""Sends deltas a hundred a call, over the v2 meter event stream.

Guarantees: as over single calls. A call has one fate for all of its events, but one that is refused is taken apart
            until the event that is to blame is alone. What Stripe refuses after its answer comes as an error report,
            which puts the row back (rejection.py).
Gives up:   knowing at once that an event was wrong: Stripe checks the stream after it answered.
Source:     https://docs.stripe.com/api/v2/billing/meter-event-stream (sessions of 15 minutes, 100 events a request)
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from sidecar.billing.outbox import fate
from sidecar.billing.outbox.fate import Fate
from sidecar.billing.outbox.lanes import Work
from sidecar.billing.outbox.row import Row
from sidecar.billing.stripe_api import StripeApi, errors
from sidecar.errors import SidecarError, StripeRefused, StripeUnavailable

RENEW_BEFORE_S = 60
UNAUTHORIZED = 401


class MeterEventStream:
    """One session at a time, renewed before it ends or when Stripe says that it has."""

    per_call = 100

    def __init__(self, api: StripeApi) -> None:
        self._sessions = api.v2.billing.meter_event_session
        self._stream = api.v2.billing.meter_event_stream
        self._token = ""
        self._renew_at = datetime.fromtimestamp(0, UTC)
        self._renewing = asyncio.Lock()

    async def send(self, lanes: Sequence[tuple[Work, Row]]) -> list[Fate]:
        """Send the rows of at most 100 lanes."""
        try:
            await self._call(lanes)
        except StripeUnavailable as error:
            return [fate.failed(row, error) for _, row in lanes]
        except StripeRefused as error:
            if len(lanes) == 1 or error.status in fate.LOCKED_OUT:
                return [fate.failed(row, error) for _, row in lanes]
            half = len(lanes) // 2
            return [*await self.send(lanes[:half]), *await self.send(lanes[half:])]
        except SidecarError as error:
            return [fate.failed(row, error) for _, row in lanes]
        return [fate.delivered(row) for _, row in lanes]

    async def _call(self, lanes: Sequence[tuple[Work, Row]]) -> None:
        token = await self._session("")
        try:
            await self._post(token, lanes)
        except StripeRefused as error:
            if error.status != UNAUTHORIZED:
                raise
            await self._post(await self._session(token), lanes)

    async def _post(self, token: str, lanes: Sequence[tuple[Work, Row]]) -> None:
        events = [
            {
                "event_name": work.event_name,
                "identifier": row.identifier,
                "payload": {"stripe_customer_id": work.customer, "value": row.value},
                "timestamp": datetime.fromtimestamp(row.at_s, UTC).isoformat().replace("+00:00", "Z"),
            }
            for work, row in lanes
        ]
        with errors():
            await self._stream.create_async({"events": events}, {"api_key": token})  # type: ignore[typeddict-item]

    async def _session(self, spent: str) -> str:
        """The token of the running session; another one than ``spent``."""
        async with self._renewing:
            if not self._token or self._token == spent or datetime.now(UTC) >= self._renew_at:
                with errors():
                    session = await self._sessions.create_async({}, {"idempotency_key": str(uuid.uuid4())})
                self._token = session.authentication_token
                ends = datetime.fromisoformat(str(session.expires_at))
                self._renew_at = datetime.fromtimestamp(ends.timestamp() - RENEW_BEFORE_S, UTC)
            return self._token
