"""Billing meters.

Source: https://docs.stripe.com/api/billing/meter
"""

from __future__ import annotations

from sidecar.embedded.stripe import fields
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import ONLY_EXPAND, Call, Route, retriever, shown
from sidecar.embedded.stripe.errors import Refused
from sidecar.embedded.stripe.fields import Fields, choice, nested, text
from sidecar.embedded.stripe.listing import page
from sidecar.embedded.stripe.rendering import render

NAME_MAX = 100
CREATE = Fields(
    {
        "display_name": text(250),
        "event_name": text(NAME_MAX),
        "default_aggregation": nested(Fields({"formula": choice("count", "last", "sum")}, ["formula"])),
        "customer_mapping": nested(
            Fields({"event_payload_key": text(NAME_MAX), "type": choice("by_id")}, ["event_payload_key", "type"])
        ),
        "value_settings": nested(Fields({"event_payload_key": text(NAME_MAX)}, ["event_payload_key"])),
        "event_time_window": choice("day", "hour"),
        **fields.EXPAND,
    },
    ["display_name", "event_name", "default_aggregation"],
)
UPDATE = Fields({"display_name": text(250), **fields.EXPAND})
LIST = Fields({"status": choice("active", "inactive"), **fields.PAGE})


def create(account: Account, call: Call) -> Object:
    values = CREATE.read(call.params)
    _must_be_free(account, values["event_name"])
    meter = account.add(
        "billing.meter",
        {
            "customer_mapping": values.get(
                "customer_mapping", {"event_payload_key": "stripe_customer_id", "type": "by_id"}
            ),
            "default_aggregation": values["default_aggregation"],
            "display_name": values["display_name"],
            "event_name": values["event_name"],
            "event_time_window": values.get("event_time_window"),
            "status": "active",
            "status_transitions": {"deactivated_at": None},
            "updated": account.now,
            "value_settings": values.get("value_settings", {"event_payload_key": "value"}),
        },
    )
    account.emit("billing.meter.created", render(account, meter))
    return shown(account, meter, values)


def _must_be_free(account: Account, event_name: str) -> None:
    if active(account, event_name) is not None:
        raise Refused(
            f"A meter with the event name {event_name} already exists. Use a different event name, or deactivate "
            "the existing meter.",
            param="event_name",
        )


def active(account: Account, event_name: str) -> Object | None:
    """The meter that takes events of this name."""
    for meter in account.table("billing.meter").values():
        if meter["event_name"] == event_name and meter["status"] == "active":
            return meter
    return None


def update(account: Account, call: Call) -> Object:
    values = UPDATE.read(call.params)
    meter = account.get("billing.meter", call.id, in_path=True)
    if values.get("display_name", meter["display_name"]) != meter["display_name"]:
        previous = {"display_name": meter["display_name"], "updated": meter["updated"]}
        meter["display_name"], meter["updated"] = values["display_name"], account.now
        account.emit("billing.meter.updated", render(account, meter), previous)
    return shown(account, meter, values)


def deactivate(account: Account, call: Call) -> Object:
    values = ONLY_EXPAND.read(call.params)
    meter = account.get("billing.meter", call.id, in_path=True)
    if meter["status"] == "inactive":
        raise Refused(f"The meter {call.id} is already inactive.")
    meter.update(status="inactive", updated=account.now, status_transitions={"deactivated_at": account.now})
    account.emit("billing.meter.deactivated", render(account, meter))
    return shown(account, meter, values)


def reactivate(account: Account, call: Call) -> Object:
    values = ONLY_EXPAND.read(call.params)
    meter = account.get("billing.meter", call.id, in_path=True)
    if meter["status"] == "active":
        raise Refused(f"The meter {call.id} is already active.")
    _must_be_free(account, meter["event_name"])
    meter.update(status="active", updated=account.now, status_transitions={"deactivated_at": None})
    account.emit("billing.meter.reactivated", render(account, meter))
    return shown(account, meter, values)


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    found = (
        meter
        for meter in account.table("billing.meter").values()
        if values.get("status", meter["status"]) == meter["status"]
    )
    return page(account, found, values, "/v1/billing/meters")


ROUTES = [
    Route("POST", "/v1/billing/meters", create),
    Route("GET", "/v1/billing/meters", listed),
    Route("GET", "/v1/billing/meters/{id}", retriever("billing.meter")),
    Route("POST", "/v1/billing/meters/{id}", update),
    Route("POST", "/v1/billing/meters/{id}/deactivate", deactivate),
    Route("POST", "/v1/billing/meters/{id}/reactivate", reactivate),
]
