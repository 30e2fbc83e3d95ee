"""Sends deltas one call each, over v1 meter events.

Guarantees: every row gets exactly one fate; an error that is none of Stripe's leaves it unknown.
Gives up:   Stripe's answer as an object: nothing in it is news, and making one took a quarter of a call's CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.billing.outbox import fate
from sidecar.billing.outbox.delta import idempotency_key
from sidecar.billing.outbox.fate import Fate
from sidecar.billing.outbox.lanes import Work
from sidecar.billing.outbox.row import Row
from sidecar.billing.stripe_api import StripeApi, errors
from sidecar.errors import SidecarError

PATH = "/v1/billing/meter_events"


class MeterEvents:
    """Stripe checks each event before it answers."""

    per_call = 1

    def __init__(self, api: StripeApi) -> None:
        self._request = api.client.raw_request_async

    async def send(self, lanes: Sequence[tuple[Work, Row]]) -> list[Fate]:
        """Send the row of one lane."""
        return [await self._one(work, row) for work, row in lanes]

    async def _one(self, work: Work, row: Row) -> Fate:
        try:
            with errors():
                await self._request(
                    "post",
                    PATH,
                    event_name=work.event_name,
                    payload={"stripe_customer_id": work.customer, "value": row.value},
                    identifier=row.identifier,
                    timestamp=row.at_s,
                    idempotency_key=idempotency_key(row.identifier, row.replays),
                )
        except SidecarError as error:
            return fate.failed(row, error)
        return fate.delivered(row)
