"""Meter error reports: what Stripe had taken and then did not count.

Guarantees: a row that a report names is sent again, or parked with the reason when that cannot help. When a report
            tells of more errors than rows that it names, whatever was sent to its meter in the reported time is in
            doubt until the summaries settle it. The same report twice changes nothing that is right by then.
Gives up:   reports that Stripe does not keep any more (30 days): the daily comparison finds what they told of.
Source:     https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api#handle-meter-event-errors; a
            sample's ``request.identifier`` is the idempotency key of the call.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from sidecar.billing.outbox import outbox, rejection
from sidecar.billing.outbox.delta import Window, identifier_of
from sidecar.billing.outbox.outbox import SETTLE_AFTER_S
from sidecar.billing.stripe_api import StripeApi, errors
from sidecar.errors import NotFound
from sidecar.ledger import audit
from sidecar.ledger.connection import Ledger
from sidecar.ledger.transaction import Transaction
from sidecar.logs import fields

ACTOR = "stripe"
MARGIN_S = 300  # between our clock and Stripe's, and from a call to its validation

log = logging.getLogger(__name__)


class Request(Struct):
    """The call that an error is of."""

    identifier: str = ""


class Sample(Struct):
    """One error of a kind."""

    error_message: str = ""
    request: Request = msgspec.field(default_factory=Request)


class ErrorType(Struct):
    """All errors of a kind, and some of them as samples."""

    code: str
    error_count: int
    sample_errors: list[Sample] = []


class Reason(Struct):
    """Every kind of error of a report."""

    error_types: list[ErrorType] = []


class Data(Struct):
    """The content of both kinds of reports."""

    validation_start: str
    validation_end: str
    reason: Reason = msgspec.field(default_factory=Reason)


class Outcome(Struct, frozen=True):
    """What became of a report: rows it named that are ours, and rows that are in doubt because of it."""

    named: int
    doubted: int


class ErrorReports:
    """Deals with the reports of one account."""

    def __init__(self, ledger: Ledger, api: StripeApi) -> None:
        self._ledger = ledger
        self._api = api

    async def handle(self, event: str, kind: str, meter: str) -> None:
        """Fetch the report of a thin event and act on it."""
        with errors():
            raw = (await self._api.v2.core.events.retrieve_async(event)).to_dict()
        data = msgspec.convert(raw.get("data"), Data)
        async with self._ledger.transaction() as tx:
            outcome = await self._act(tx, data, meter)
            codes = {error.code: error.error_count for error in data.reason.error_types}
            detail = {"event": event, "kind": kind, "meter": meter, "codes": codes, **msgspec.structs.asdict(outcome)}
            await audit.write(tx, actor=ACTOR, action="stripe.meter_errors", detail=detail)
        log.error(
            "Stripe did not count events that it had taken",
            extra=fields(event_id=event, meter=meter, codes=codes, named=outcome.named, doubted=outcome.doubted),
        )

    async def _act(self, tx: Transaction, data: Data, meter: str) -> Outcome:
        named: list[str] = []
        ours = unnamed = 0
        told = [sample.request.identifier for error in data.reason.error_types for sample in error.sample_errors]
        await tx.rows("lock_lanes_of_rows", [identifier_of(key) for key in told])
        for error in data.reason.error_types:
            samples = {sample.request.identifier: sample.error_message for sample in error.sample_errors}
            hits = 0
            for key, message in sorted(samples.items()):
                if await rejection.rejected(tx, key, error.code, message):
                    hits += 1
                    named.append(identifier_of(key))
            ours += hits
            if error.code != "duplicate_meter_event":
                # Of the bulk path a sample names the call, which had many events.
                unnamed += max(0, error.error_count - hits)
        if named:
            await tx.rows("certainly_absent", named)
        doubted = await self._doubt(tx, data, meter, named) if unnamed else 0
        return Outcome(ours, doubted)

    async def _doubt(self, tx: Transaction, data: Data, meter: str, named: Sequence[str]) -> int:
        """Leave to the summaries whatever the report may be about."""
        metrics = None
        if meter:
            known = await tx.rows("stripe_objects_by_id", [meter])
            if not known:
                return 0  # somebody else's meter
            metrics = [row["metric"] for row in known]
        sent = (metrics, _seconds(data.validation_start) - MARGIN_S, _seconds(data.validation_end) + MARGIN_S)
        await tx.rows("lock_lanes_sent", *sent)
        rows = await tx.rows(
            "doubt_deliveries",
            *sent,
            named,
            "Stripe reported errors of its meter at that time, without naming them",
            SETTLE_AFTER_S,
        )
        await outbox.wake(tx, [(Window(tenant, metric, 0, 0), int(deadline_s)) for tenant, metric, deadline_s in rows])
        return len(rows)


def _seconds(text: Any) -> int:
    try:
        return int(dt.datetime.fromisoformat(str(text)).timestamp())
    except ValueError as error:
        raise NotFound(f"the report has no time of validation but {text!r}") from error
