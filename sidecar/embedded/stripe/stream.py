"""The meter event stream of v2: sessions, batches, and reports about what could not be counted.

Guarantees: a batch is answered before its events are checked; what fails is reported by thin events per meter, with
            samples that name the identifier of each event.
Gives up:   the real windows of reports, which are longer: here one is sent per tick.
Source: https://docs.stripe.com/api/v2/billing/meter-event-stream/create,
        https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage#handle-meter-event-errors
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from typing import Any

from sidecar.embedded.stripe import event_log, events, meters
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import Call, Route
from sidecar.embedded.stripe.errors import Refused, bad_parameter
from sidecar.embedded.stripe.events import Told, Unfit, iso

SESSION_S = 900
EVENTS_MAX = 100
SAMPLES_MAX = 5
PROCESS = "stream.process"
REPORT = "v1.billing.meter.error_report_triggered"
NO_METER = "v1.billing.meter.no_meter_found"
SESSION_EXPIRED = "billing_meter_event_session_expired"


def open_session(account: Account, call: Call) -> Object:
    if call.params:
        raise bad_parameter(f"Received unknown parameter: {next(iter(call.params))}", "body", "unknown_fields")
    session = account.add(
        "v2.billing.meter_event_session",
        {"authentication_token": "mes_token_" + secrets.token_hex(24), "_expires_s": account.now + SESSION_S},
    )
    return {
        "id": session["id"],
        "object": "v2.billing.meter_event_session",
        "authentication_token": session["authentication_token"],
        "created": iso(session["created"]),
        "expires_at": iso(session["_expires_s"]),
        "livemode": False,
    }


def _must_be_open(account: Account, token: str) -> None:
    for session in account.table("v2.billing.meter_event_session").values():
        if secrets.compare_digest(session["authentication_token"].encode(), token.encode()):
            if session["_expires_s"] > account.now:
                return
            break
    else:
        raise Refused("Invalid authentication token provided.", status=401, code="unauthorized", executed=False)
    raise Refused(
        "The temporary session token has expired.",
        status=401,
        type="temporary_session_expired",
        code=SESSION_EXPIRED,
        executed=False,
    )


def create(account: Account, call: Call) -> Object:
    _must_be_open(account, call.authorization)
    for name in call.params:
        if name != "events":
            raise bad_parameter(f"Received unknown parameter: {name}", name, "unknown_fields")
    batch = call.params.get("events")
    if not isinstance(batch, list) or not batch:
        raise bad_parameter("Missing required param: events.", "events", "missing_fields")
    if len(batch) > EVENTS_MAX:
        raise bad_parameter(f"At most {EVENTS_MAX} events per request are supported.", "events", "invalid_fields")
    told = [events.read_v2(account, one, events.STREAM, f"events[{number}].") for number, one in enumerate(batch)]
    for one in told:
        account.metering.came[one.identifier] += 1
    forced = call.ids.get("async_error", "")
    account.streamed.extend((one, forced) for one in told)
    account.schedule(account.now, PROCESS, "")
    account.changes += 1
    return {}


def process(account: Account, _: str) -> None:
    """Check what was streamed, count what is good, and report the rest."""
    failed: defaultdict[str, list[tuple[Told, str, str]]] = defaultdict(list)
    streamed, account.streamed = account.streamed, []
    for told, forced in streamed:
        meter = _meter_id(account, told.event_name)
        if forced:
            message = f"The event was refused as {forced}."
            events.refuse(account, told, forced, message)
            failed[meter].append((told, forced, message))
            continue
        try:
            events.take(account, told)
        except Unfit as unfit:
            if unfit.code == "duplicate_meter_event":
                # The stream drops repeated identifiers without a word.
                continue
            failed[meter].append((told, unfit.code, str(unfit)))
    for meter, errors in failed.items():
        report(account, meter, errors)


def _meter_id(account: Account, event_name: str) -> str:
    """The meter of a name, an archived one too; empty without any."""
    active = meters.active(account, event_name)
    if active is not None:
        return str(active["id"])
    known = [meter["id"] for meter in account.table("billing.meter").values() if meter["event_name"] == event_name]
    return str(known[-1]) if known else ""


def report(account: Account, meter: str, errors: list[tuple[Told, str, str]]) -> Object:
    """Tell by a thin event which events were not counted, and why."""
    kinds: defaultdict[str, list[tuple[Told, str]]] = defaultdict(list)
    for told, code, message in errors:
        kinds[code].append((told, message))
    data: dict[str, Any] = {
        "developer_message_summary": f"There {'is' if len(errors) == 1 else 'are'} {len(errors)} invalid event(s)",
        "reason": {
            "error_count": len(errors),
            "error_types": [
                {
                    "code": code,
                    "error_count": len(found),
                    "sample_errors": [
                        {"error_message": message, "request": {"identifier": told.identifier}}
                        for told, message in found[:SAMPLES_MAX]
                    ],
                }
                for code, found in kinds.items()
            ],
        },
        "validation_start": iso(account.now - account.now % 10),
        "validation_end": iso(account.now - account.now % 10 + 10),
    }
    if not meter:
        return event_log.tell_thin(account, NO_METER, None, data)
    related = {"id": meter, "type": "billing.meter", "url": f"/v1/billing/meters/{meter}"}
    return event_log.tell_thin(account, REPORT, related, data)


def accept_and_report(account: Account, told: Told, code: str) -> None:
    """What a fault asks for: an event of v1 that is answered as taken, and reported as refused."""
    message = f"The event was refused as {code}."
    events.refuse(account, told, code, message)
    report(account, _meter_id(account, told.event_name), [(told, code, message)])


ROUTES = [
    Route("POST", "/v2/billing/meter_event_session", open_session),
    Route("POST", "/v2/billing/meter_event_stream", create, metered=True, own_token=True),
]
