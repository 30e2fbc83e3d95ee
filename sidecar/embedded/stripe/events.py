"""Meter events of v1 and v2 with synchronous checks, their adjustments, and what the checks are.

Guarantees: an event is refused for exactly one reason, under the code that the documentation names. In v1 a repeated
            identifier is refused without a code, as the real API was seen to do; go by the message there.
Gives up:   dimensions.
Source: https://docs.stripe.com/api/billing/meter-event, https://docs.stripe.com/api/v2/billing/meter-event,
        https://docs.stripe.com/changelog/dahlia/2026-04-22/billing-meter-event-values-validation
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from msgspec import Struct

from sidecar.embedded.stripe import fields, meters
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import Call, Route, shown
from sidecar.embedded.stripe.errors import Refused, bad_parameter
from sidecar.embedded.stripe.fields import Fields, choice, integer, nested, text, texts
from sidecar.embedded.stripe.metering import IDENTIFIER_S, MeterEvent, Refusal

IDENTIFIER_MAX = 100
PAST_S = 35 * 86_400
FUTURE_S = 300
DIGITS_MAX = 15
V1, V2, STREAM = "v1", "v2", "stream"
_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
CREATE = Fields(
    {
        "event_name": text(100),
        "payload": texts,
        "identifier": text(IDENTIFIER_MAX),
        "timestamp": integer(),
        **fields.EXPAND,
    },
    ["event_name", "payload"],
)
ADJUST = Fields(
    {
        "event_name": text(100),
        "type": choice("cancel"),
        "cancel": nested(Fields({"identifier": text(IDENTIFIER_MAX)}, ["identifier"])),
        **fields.EXPAND,
    },
    ["event_name", "type"],
)


class Told(Struct):
    """One event as it was told, of whichever version."""

    event_name: str
    payload: dict[str, str]
    identifier: str
    timestamp: int
    source: str


class Unfit(Exception):
    """Why an event is refused, as a code of the documentation."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def take(account: Account, told: Told) -> MeterEvent:
    """Check an event and count it; raises Unfit, and remembers why."""
    try:
        event = _checked(account, told)
    except Unfit as unfit:
        refuse(account, told, unfit.code, str(unfit))
        raise
    account.metering.add(event)
    account.changes += 1
    return event


def refuse(account: Account, told: Told, code: str, message: str) -> None:
    """Remember a refused event for whoever asks later."""
    meter = meters.active(account, told.event_name)
    customer_key = meter["customer_mapping"]["event_payload_key"] if meter else "stripe_customer_id"
    value_key = meter["value_settings"]["event_payload_key"] if meter else "value"
    account.metering.refused.append(
        Refusal(
            told.identifier,
            told.event_name,
            str(told.payload.get(customer_key, "")),
            str(told.payload.get(value_key, "")),
            code,
            message,
            account.now,
            told.source,
        )
    )


def _checked(account: Account, told: Told) -> MeterEvent:
    meter = _meter(account, told)
    if account.metering.exists(meter["id"], told.identifier, account.now):
        raise Unfit("duplicate_meter_event", f"An event already exists with identifier {told.identifier}.")
    if told.timestamp > account.now + FUTURE_S:
        raise Unfit(
            "timestamp_in_future",
            f"The timestamp {told.timestamp} is more than 5 minutes in the future.",
            "timestamp",
        )
    if told.timestamp < account.now - PAST_S:
        raise Unfit(
            "timestamp_too_far_in_past",
            f"The timestamp {told.timestamp} is more than 35 calendar days in the past.",
            "timestamp",
        )
    customer = told.payload.get(meter["customer_mapping"]["event_payload_key"], "")
    if not customer:
        key = meter["customer_mapping"]["event_payload_key"]
        raise Unfit("meter_event_no_customer_defined", f"The payload has no {key}.", f"payload[{key}]")
    found = account.table("customer").get(customer)
    if found is None or found.get("deleted"):
        key = meter["customer_mapping"]["event_payload_key"]
        raise Unfit("meter_event_customer_not_found", f"No such customer: '{customer}'", f"payload[{key}]")
    return MeterEvent(
        identifier=told.identifier,
        meter=meter["id"],
        customer=customer,
        value=_value(account, meter, told.payload),
        timestamp=told.timestamp,
        created=account.now,
        created_ms=account.clock.now_ms(),
        source=told.source,
    )


def _meter(account: Account, told: Told) -> Object:
    meter = meters.active(account, told.event_name)
    if meter is not None:
        return meter
    if any(known["event_name"] == told.event_name for known in account.table("billing.meter").values()):
        raise Unfit("archived_meter", f"The meter of event name {told.event_name} is archived.", "event_name")
    raise Unfit("no_meter", f'No active meter found for event name "{told.event_name}"', "event_name")


def _value(account: Account, meter: Object, payload: dict[str, str]) -> Decimal:
    if meter["default_aggregation"]["formula"] == "count":
        return Decimal(1)
    key = meter["value_settings"]["event_payload_key"]
    param = f"payload[{key}]"
    if key not in payload:
        raise Unfit("meter_event_value_not_found", f"The payload has no {key}.", param)
    value = payload[key]
    if not _NUMBER.fullmatch(value):
        raise Unfit(
            "meter_event_invalid_value", f"The value in the event payload is no number. Received {value}.", param
        )
    if account.options.whole_values_only and "." in value:
        raise Unfit(
            "meter_event_invalid_value",
            f"The value in the event payload must be a whole number. Received {value}.",
            param,
        )
    if len(value.lstrip("-").replace(".", "").lstrip("0")) > DIGITS_MAX:
        raise Unfit(
            "meter_event_value_too_many_digits",
            f"The value in the event payload can have at most {DIGITS_MAX} digits. Received {value}.",
            param,
        )
    return Decimal(value)


def create(account: Account, call: Call) -> Object:
    values = CREATE.read(call.params)
    told = Told(
        values["event_name"],
        values["payload"],
        values.get("identifier") or str(uuid.uuid4()),
        values.get("timestamp", account.now),
        V1,
    )
    if "async_error" in call.ids:
        account.accept_and_report(account, told, call.ids["async_error"])
        return _shown(told, account.now)
    try:
        event = take(account, told)
    except Unfit as unfit:
        codes = {"duplicate_meter_event": None, "meter_event_customer_not_found": "resource_missing"}
        raise Refused(str(unfit), code=codes.get(unfit.code, unfit.code), param=unfit.param) from None
    return _shown(told, event.created)


def _shown(told: Told, created: int) -> Object:
    return {
        "object": "billing.meter_event",
        "created": created,
        "event_name": told.event_name,
        "identifier": told.identifier,
        "livemode": False,
        "payload": told.payload,
        "timestamp": told.timestamp,
    }


def create_v2(account: Account, call: Call) -> Object:
    told = read_v2(account, call.params, V2, "")
    try:
        event = take(account, told)
    except Unfit as unfit:
        message = str(unfit)
        if unfit.code == "duplicate_meter_event":
            message = "A meter event with a duplicate identifier has already been submitted."
        raise Refused(message, code=unfit.code) from None
    return {
        "object": "v2.billing.meter_event",
        "created": iso(event.created),
        "event_name": told.event_name,
        "identifier": told.identifier,
        "livemode": False,
        "payload": told.payload,
        "timestamp": iso(told.timestamp),
    }


def read_v2(account: Account, given: Any, source: str, within: str) -> Told:
    """Read an event of JSON, where types are types: a number in the payload is refused."""
    if not isinstance(given, dict):
        raise bad_parameter("Invalid object", within or "body", "invalid_fields")
    for name in given:
        if name not in ("event_name", "payload", "identifier", "timestamp"):
            raise bad_parameter(f"Received unknown parameter: {within}{name}", f"{within}{name}", "unknown_fields")
    for name in ("event_name", "payload"):
        if name not in given:
            raise bad_parameter(f"Missing required param: {within}{name}.", f"{within}{name}", "missing_fields")
    for name in ("event_name", "identifier", "timestamp"):
        if name in given and (not isinstance(given[name], str) or not given[name]):
            raise bad_parameter(f"Invalid string: {given[name]}", f"{within}{name}", "invalid_fields")
    if len(given.get("identifier", "")) > IDENTIFIER_MAX:
        raise bad_parameter(
            f"Invalid string: identifier; must be at most {IDENTIFIER_MAX} characters",
            f"{within}identifier",
            "invalid_fields",
        )
    payload = given["payload"]
    if not isinstance(payload, dict) or not all(isinstance(value, str) for value in payload.values()):
        raise bad_parameter("Every value of payload must be a string.", f"{within}payload", "invalid_fields")
    timestamp = account.now
    if "timestamp" in given:
        try:
            timestamp = int(datetime.fromisoformat(given["timestamp"]).timestamp())
        except ValueError as error:
            raise bad_parameter(
                f"Invalid timestamp: {given['timestamp']}", f"{within}timestamp", "invalid_fields"
            ) from error
    return Told(given["event_name"], payload, given.get("identifier") or str(uuid.uuid4()), timestamp, source)


def iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def alone(account: Account, call: Call) -> tuple[str, str] | None:
    """The customer and meter of a call, of which Stripe takes one at a time; also counts that the call came."""
    payload, name = call.params.get("payload"), call.params.get("event_name")
    identifier = call.params.get("identifier")
    if isinstance(identifier, str):
        account.metering.came[identifier] += 1
    if not isinstance(payload, dict) or not isinstance(name, str):
        return None
    meter = meters.active(account, name)
    key = meter["customer_mapping"]["event_payload_key"] if meter else "stripe_customer_id"
    return str(payload.get(key, "")), name


def adjust(account: Account, call: Call) -> Object:
    values = ADJUST.read(call.params)
    meter = meters.active(account, values["event_name"])
    if meter is None:
        raise Refused(f'No active meter found for event name "{values["event_name"]}"', param="event_name")
    if "cancel" not in values:
        raise bad_parameter("Missing required param: cancel.", "cancel", "parameter_missing")
    identifier = values["cancel"]["identifier"]
    event = account.metering.identifiers.get((meter["id"], identifier))
    if event is None or event.cancelled:
        raise Refused(
            f"No meter event with identifier {identifier} to cancel.",
            code="resource_missing",
            param="cancel[identifier]",
        )
    if account.now - event.created >= IDENTIFIER_S:
        raise Refused(
            "Meter events can only be cancelled within 24 hours of being received.", param="cancel[identifier]"
        )
    account.metering.cancel(event)
    account.changes += 1
    answer = {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": values["event_name"],
        "livemode": False,
        "status": "pending",
        "type": "cancel",
    }
    return shown(account, answer, values)


ROUTES = [
    Route("POST", "/v1/billing/meter_events", create, metered=True, alone=alone),
    Route("POST", "/v2/billing/meter_events", create_v2, metered=True, alone=alone),
    Route("POST", "/v1/billing/meter_event_adjustments", adjust),
]
