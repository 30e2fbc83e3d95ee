"""Receives what Stripe sends: checks who signed it, and keeps its envelope.

Guarantees: nothing is kept whose signature fits none of the secrets or is older than the tolerance; when ``keep``
            returns, the event is in the ledger, once, however often it is sent. The payload is not kept: it may be old
            by now, and what is in it is nobody's here to store.
Gives up:   events signed ahead of our clock are taken, as Stripe's own library does.
Source: https://docs.stripe.com/webhooks/signature, https://docs.stripe.com/event-destinations
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from typing import Any

import stripe
from msgspec import Struct

from sidecar.billing.subscriptions.subscriptions import named
from sidecar.errors import JsonInvalid, SidecarError
from sidecar.json_text import decoded
from sidecar.ledger.connection import Ledger
from sidecar.telemetry import Reading

BODY_BYTES_MAX = 512 * 1024
TOLERANCE_S = 300
_NAME = re.compile(r"[!-~]{1,255}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")

SUBSCRIPTION, INVOICE, CUSTOMER, CHECKOUT, METER, NOTED = (
    "subscription",
    "invoice",
    "customer",
    "checkout",
    "meter",
    "noted",
)
# What is looked at again when an event of a type arrives; types not listed are kept and otherwise passed over.
_SUBJECTS = {
    "customer.created": CUSTOMER,
    "customer.updated": CUSTOMER,
    "customer.deleted": CUSTOMER,
    "customer.subscription.created": SUBSCRIPTION,
    "customer.subscription.updated": SUBSCRIPTION,
    "customer.subscription.deleted": SUBSCRIPTION,
    "customer.subscription.paused": SUBSCRIPTION,
    "customer.subscription.resumed": SUBSCRIPTION,
    "customer.subscription.pending_update_applied": SUBSCRIPTION,
    "customer.subscription.pending_update_expired": SUBSCRIPTION,
    "customer.subscription.trial_will_end": SUBSCRIPTION,
    "invoice.created": INVOICE,
    "invoice.updated": INVOICE,
    "invoice.finalized": INVOICE,
    "invoice.paid": INVOICE,
    "invoice.payment_succeeded": INVOICE,
    "invoice.payment_failed": INVOICE,
    "invoice.payment_action_required": INVOICE,
    "invoice.marked_uncollectible": INVOICE,
    "invoice.voided": INVOICE,
    "invoice.deleted": INVOICE,
    "checkout.session.completed": CHECKOUT,
    "v1.billing.meter.error_report_triggered": METER,
    "v1.billing.meter.no_meter_found": METER,
}


class EventRefused(SidecarError):
    """What was sent is no event of ours; its signature or its form is wrong."""


class Received(Struct, frozen=True, kw_only=True):
    """The envelope of one event. ``object`` is what it is about; ``made_s`` when Stripe made it."""

    id: str
    kind: str
    object: str
    customer: str
    made_s: int
    thin: bool


class _Data(Struct):
    object: dict[str, Any] = {}


class _Related(Struct):
    id: str = ""


class _Envelope(Struct):
    id: str
    object: str
    type: str
    created: int | str
    data: _Data | None = None
    related_object: _Related | None = None


class WebhookCounters:
    """What the receiver and the inbox count up or set; read only at a scrape."""

    __slots__ = (
        "dead",
        "doubled",
        "failed",
        "handled",
        "oldest_s",
        "received",
        "refused",
        "repeated",
        "unfinished",
        "waiting",
    )

    def __init__(self) -> None:
        self.received = 0
        self.repeated = 0
        self.refused = 0
        self.handled = 0
        self.failed = 0
        self.waiting = 0
        self.oldest_s = 0
        self.dead = 0
        self.doubled = 0
        self.unfinished = 0

    def reading(self) -> Reading:
        """Everything counted so far, by family."""
        outcomes = ("received", "repeated", "refused", "handled", "failed")
        return {
            "sidecar_webhooks_total": {(name,): [getattr(self, name)] for name in outcomes},
            "sidecar_webhooks_waiting": {(): [self.waiting]},
            "sidecar_webhook_lag_seconds": {(): [self.oldest_s]},
            "sidecar_webhooks_dead": {(): [self.dead]},
            "sidecar_stripe_subscriptions_doubled": {(): [self.doubled]},
            "sidecar_stripe_changes_unfinished": {(): [self.unfinished]},
        }


def subject_of(kind: str) -> str:
    """What to look at again after an event of this type; NOTED for nothing."""
    return _SUBJECTS.get(kind, NOTED)


def verify(body: bytes, header: str, secrets: Sequence[str], now_s: int) -> None:
    """Check the signature against every secret, and its time against our clock; EventRefused says which was wrong."""
    # Every secret is tried, so that the time says nothing about which one fits.
    if not sum(_signed(body, header, secret) for secret in secrets):
        raise EventRefused("the signature fits none of the webhook secrets; compare them with the endpoint's at Stripe")
    # Exactly one time in plain digits: where another reader of the header might see another one, nothing is believed.
    times = [part[2:] for part in header.split(",") if part.startswith("t=")]
    if len(times) != 1 or not _TIMESTAMP.fullmatch(times[0]) or int(times[0]) < now_s - TOLERANCE_S:
        raise EventRefused(f"the signature is older than {TOLERANCE_S} s; compare the clocks, or send the event again")


def read(body: bytes) -> Received:
    """The envelope of a body whose signature is good; EventRefused when it is none."""
    try:
        envelope = decoded(body, _Envelope)
    except JsonInvalid as error:
        raise EventRefused("the body is no event") from error
    thin = envelope.object == "v2.core.event"
    if not thin and envelope.object != "event":
        raise EventRefused("the body is no event")
    about = envelope.data.object if envelope.data is not None and not thin else {}
    related = envelope.related_object.id if envelope.related_object is not None else ""
    subject = related if thin else named(about.get("id"))
    customer = subject if subject_of(envelope.type) == CUSTOMER else named(about.get("customer"))
    names = (envelope.id, envelope.type)
    if not all(_NAME.fullmatch(name) for name in names) or not all(
        not name or _NAME.fullmatch(name) for name in (subject, customer)
    ):
        raise EventRefused("the event names something that is no name")
    return Received(
        id=envelope.id,
        kind=envelope.type,
        object=subject,
        customer=customer,
        made_s=_seconds(envelope.created),
        thin=thin,
    )


async def keep(ledger: Ledger, event: Received) -> bool:
    """Store an event; False when it was there already. What nobody handles is stored as dealt with."""
    # An event about nothing that has a name cannot be fetched anew; those of meters are fetched by their own id.
    subject = subject_of(event.kind)
    waits = subject == METER or (subject != NOTED and bool(event.object))
    state = "waiting" if waits else "handled"
    async with ledger.transaction() as tx:
        stored = await tx.value(
            "store_event", event.id, event.kind, event.object, event.customer, event.thin, event.made_s, state
        )
    return bool(stored)


def _signed(body: bytes, header: str, secret: str) -> bool:
    try:
        # Without a tolerance: the library knows the machine's clock only.
        return bool(stripe.WebhookSignature.verify_header(body, header, secret, None))
    except (stripe.SignatureVerificationError, UnicodeError, TypeError):
        return False


def _seconds(created: int | str) -> int:
    try:
        at_s = created if isinstance(created, int) else int(dt.datetime.fromisoformat(created).timestamp())
    except ValueError as error:
        raise EventRefused("the event's time is none") from error
    if not 0 <= at_s < 2**40:
        raise EventRefused("the event's time is none")
    return at_s
