"""What happened, as events that can be read again: snapshots of v1, and thin events of v2.

Source: https://docs.stripe.com/api/events, https://docs.stripe.com/api/v2/core/events
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from sidecar.embedded.stripe import fields
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import Call, Route, retriever
from sidecar.embedded.stripe.errors import Refused, missing_object
from sidecar.embedded.stripe.events import iso
from sidecar.embedded.stripe.fields import Fields, array, text
from sidecar.embedded.stripe.listing import created_within, page
from sidecar.embedded.stripe.rendering import render

LIST = Fields({"type": text(), "types": array(text(), 20), **fields.CREATED, **fields.PAGE})


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    wanted = [values["type"]] if "type" in values else values.get("types", ["*"])
    found = (
        event
        for event in account.table("event").values()
        if any(fnmatchcase(event["type"], pattern) for pattern in wanted) and created_within(event, values)
    )
    return page(account, found, values, "/v1/events")


def tell_thin(account: Account, event_type: str, related: Object | None, data: dict[str, Any]) -> Object:
    """Make a thin event: what is delivered names an object, ``data`` shows when the event is read."""
    created = account.now
    event = account.add(
        "v2.core.event",
        {
            "type": event_type,
            "context": None,
            "reason": None,
            "related_object": related,
            "data": data,
            "_created_s": created,
        },
    )
    event["created"] = iso(created)
    account.notify(event)
    return event


def retrieve_thin(account: Account, call: Call) -> Object:
    if call.params:
        raise Refused(f"Received unknown parameter: {next(iter(call.params))}", code="unknown_fields", executed=False)
    event = account.table("v2.core.event").get(call.id)
    if event is None:
        error = missing_object("v2.core.event", call.id, in_path=True)
        error.code = "not_found"
        raise error
    found: Object = render(account, event)
    return found


def thin(event: Object) -> Object:
    """The event as it is delivered."""
    return {name: value for name, value in event.items() if name != "data" and not name.startswith("_")}


ROUTES = [
    Route("GET", "/v1/events", listed),
    Route("GET", "/v1/events/{id}", retriever("event")),
    Route("GET", "/v2/core/events/{id}", retrieve_thin),
]
