"""Events that the Stripe stand-in takes and reports as not counted later, and what deals with these reports."""

from __future__ import annotations

from typing import Any

from sidecar.billing.outbox.error_reports import ErrorReports
from tests.servers.forwarding import Forwarding


def told(place: Forwarding) -> list[dict[str, Any]]:
    """The error reports so far."""
    found: list[dict[str, Any]] = place.stripe.state("thin_events")["thin_events"]
    return found


async def handle(place: Forwarding) -> None:
    """Deal with every report, as the inbox does when the webhook comes."""
    reports = ErrorReports(place.ledger, place.api())
    for event in told(place):
        await reports.handle(event["id"], event["type"], (event["related_object"] or {}).get("id", ""))


async def refused_later(place: Forwarding, code: str) -> None:
    """Have an event taken, and reported as refused."""
    place.stripe.faults({"kind": "async_error", "code": code, "path": "/v1/billing/meter_events", "count": 1})
    await place.count("a", 7)
    await place.forwarder().flush()
    assert await place.states() == {"delivered": 1}
    assert place.at_stripe() == {}
