"""Subscription schedules, as far as a change at the period's end needs them: made from a subscription, with phases.

Gives up:   schedules that start subscriptions, trials and add_invoice_items of phases, the end behaviours renew and
            none.
Source: https://docs.stripe.com/api/subscription_schedules,
        https://docs.stripe.com/billing/subscriptions/subscription-schedules
"""

from __future__ import annotations

from typing import Any

from sidecar.embedded.stripe import cycle, fields, items
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import Call, Route, retriever, shown
from sidecar.embedded.stripe.errors import Refused, bad_parameter
from sidecar.embedded.stripe.fields import Fields, array, boolean, choice, integer, nested, text, word_or
from sidecar.embedded.stripe.listing import created_within, page
from sidecar.embedded.stripe.rendering import render

PHASES_MAX = 10
PRORATIONS = choice("always_invoice", "create_prorations", "none")
PHASE = Fields(
    {
        "items": array(items.NEW_KIND, items.COUNT_MAX),
        "start_date": word_or("now", integer(0)),
        "end_date": word_or("now", integer(0)),
        "duration": nested(
            Fields({"interval": choice("day", "month", "week", "year"), "interval_count": integer(1)}, ["interval"])
        ),
        "metadata": fields.metadata,
        "proration_behavior": PRORATIONS,
    },
    ["items"],
)
CREATE = Fields({"from_subscription": text(), "metadata": fields.metadata, **fields.EXPAND}, ["from_subscription"])
UPDATE = Fields(
    {
        "end_behavior": choice("cancel", "release"),
        "metadata": fields.metadata,
        "phases": array(nested(PHASE), PHASES_MAX),
        "proration_behavior": PRORATIONS,
        **fields.EXPAND,
    }
)
CANCEL = Fields({"invoice_now": boolean, "prorate": boolean, **fields.EXPAND})
LIST = Fields({"customer": text(), **fields.CREATED, **fields.PAGE})


def create(account: Account, call: Call) -> Object:
    values = CREATE.read(call.params)
    subscription = account.get("subscription", values["from_subscription"], "from_subscription")
    if subscription["schedule"]:
        raise Refused(
            f"You cannot migrate a subscription that is already attached to a schedule: `{subscription['schedule']}`.",
            param="from_subscription",
        )
    if subscription["ended_at"]:
        raise Refused("You cannot migrate a subscription that is ended.", param="from_subscription")
    data = items.of(subscription)
    start = min(item["current_period_start"] for item in data)
    schedule = account.add(
        "subscription_schedule",
        {
            "application": None,
            "billing_mode": subscription["billing_mode"],
            "canceled_at": None,
            "completed_at": None,
            "current_phase": None,
            "customer": subscription["customer"],
            "default_settings": {
                "billing_cycle_anchor": "automatic",
                "collection_method": subscription["collection_method"],
                "default_payment_method": subscription["default_payment_method"],
            },
            "end_behavior": "release",
            "metadata": fields.merged({}, values.get("metadata")),
            "phases": [
                _phase(
                    subscription,
                    [_item(item) for item in data],
                    start,
                    min(item["current_period_end"] for item in data),
                    {},
                )
            ],
            "released_at": None,
            "released_subscription": None,
            "status": "active",
            "subscription": subscription["id"],
            "_applied": 0,
        },
    )
    _mark(schedule)
    subscription["schedule"] = schedule["id"]
    account.emit("subscription_schedule.created", render(account, schedule))
    account.plan_subscription(account, subscription["id"])
    return shown(account, schedule, values)


def _item(item: Object) -> Object:
    found = {"price": item["price"], "metadata": item["metadata"], "discounts": [], "tax_rates": []}
    return {**found, "quantity": item["quantity"]} if "quantity" in item else found


def _phase(subscription: Object, data: list[Object], start: int, end: int, given: dict[str, Any]) -> Object:
    return {
        "add_invoice_items": [],
        "billing_cycle_anchor": None,
        "currency": subscription["currency"],
        "discounts": [],
        "end_date": end,
        "items": data,
        "metadata": fields.merged({}, given.get("metadata")),
        "proration_behavior": given.get("proration_behavior", "create_prorations"),
        "start_date": start,
        "trial_end": None,
    }


def _mark(schedule: Object) -> None:
    phase = schedule["phases"][schedule["_applied"]]
    schedule["current_phase"] = {"start_date": phase["start_date"], "end_date": phase["end_date"]}


def update(account: Account, call: Call) -> Object:
    values = UPDATE.read(call.params)
    schedule = account.get("subscription_schedule", call.id, in_path=True)
    _must_run(schedule)
    if "phases" in values:
        _rephase(account, schedule, values["phases"])
    schedule["end_behavior"] = values.get("end_behavior", schedule["end_behavior"])
    schedule["metadata"] = fields.merged(schedule["metadata"], values.get("metadata"))
    account.emit("subscription_schedule.updated", render(account, schedule))
    account.changes += 1
    account.plan_subscription(account, schedule["subscription"])
    return shown(account, schedule, values)


def _must_run(schedule: Object) -> None:
    if schedule["status"] != "active":
        raise Refused(
            f"You cannot change a subscription schedule that is in the `{schedule['status']}` status. Only active "
            "schedules can be changed.",
            param="id",
        )


def _rephase(account: Account, schedule: Object, given: list[dict[str, Any]]) -> None:
    subscription = account.table("subscription")[schedule["subscription"]]
    phases: list[Object] = []
    for number, one in enumerate(given):
        within = f"phases[{number}]"
        start = one.get("start_date", phases[-1]["end_date"] if phases else None)
        if start is None:
            raise bad_parameter(
                "The first phase must have a `start_date`.", f"{within}[start_date]", "parameter_missing"
            )
        start = account.now if start == "now" else start
        if phases and start != phases[-1]["end_date"]:
            raise Refused("A phase must start where the one before it ends.", param=f"{within}[start_date]")
        if not phases and start != schedule["current_phase"]["start_date"]:
            raise Refused("You can not modify the start date of the current phase.", param=f"{within}[start_date]")
        data = [
            _checked(account, subscription, item, f"{within}[items][{place}]")
            for place, item in enumerate(one["items"])
        ]
        end = _end(account, one, data, start, within, last=number == len(given) - 1)
        if end <= max(start, account.now):
            raise Refused("A phase must end in the future, after it starts.", param=f"{within}[end_date]")
        phases.append(_phase(subscription, data, start, end, one))
    schedule["phases"], schedule["_applied"] = phases, 0
    _mark(schedule)
    _apply(account, subscription, phases[0])


def _checked(account: Account, subscription: Object, given: dict[str, Any], within: str) -> Object:
    alone = {**subscription, "items": {"data": []}}
    return _item(items.make(account, alone, given, within))


def _end(account: Account, given: dict[str, Any], data: list[Object], start: int, within: str, *, last: bool) -> int:
    if "end_date" in given and "duration" in given:
        raise bad_parameter(
            "You can only use one of end_date and duration.", f"{within}[duration]", "parameters_exclusive"
        )
    if "end_date" in given:
        return account.now if given["end_date"] == "now" else int(given["end_date"])
    duration = given.get("duration")
    if duration is None:
        if not last:
            raise bad_parameter(
                "Every phase but the last must have an `end_date` or a `duration`.",
                f"{within}[end_date]",
                "parameter_missing",
            )
        duration = account.table("price")[data[0]["price"]]["recurring"]
    return cycle.step(start, duration["interval"], duration.get("interval_count", 1), 1)


def _apply(account: Account, subscription: Object, phase: Object) -> None:
    """Bring the subscription's items to those of a phase."""
    present = {item["price"]: item for item in items.of(subscription)}
    wanted = {item["price"]: item for item in phase["items"]}
    changes: list[dict[str, Any]] = []
    for price, item in wanted.items():
        quantity = {"quantity": item["quantity"]} if "quantity" in item else {}
        if price not in present:
            changes.append({"price": price, "metadata": item["metadata"], **quantity})
        elif quantity and present[price].get("quantity") != item["quantity"]:
            changes.append({"id": present[price]["id"], **quantity})
    changes += [{"id": item["id"], "deleted": True} for price, item in present.items() if price not in wanted]
    at_end = any(item["current_period_end"] <= account.now for item in present.values())
    prorate = phase["proration_behavior"] != "none" and not at_end
    if changes:
        items.wait(account, subscription, items.change(account, subscription, changes, prorate=prorate))
    subscription["metadata"] = fields.merged(subscription["metadata"], phase["metadata"])


def times(account: Account, subscription: Object) -> list[int]:
    """When its phases end."""
    schedule = account.table("subscription_schedule").get(subscription["schedule"] or "")
    return [phase["end_date"] for phase in schedule["phases"]] if schedule else []


def advance(account: Account, subscription: Object) -> None:
    """Enter the phase of now, or end the schedule."""
    schedule = account.table("subscription_schedule").get(subscription["schedule"] or "")
    if schedule is None or schedule["status"] != "active" or subscription["ended_at"]:
        return
    number = schedule["_applied"]
    while number < len(schedule["phases"]) and schedule["phases"][number]["end_date"] <= account.now:
        number += 1
    if number == schedule["_applied"]:
        return
    if number < len(schedule["phases"]):
        before = render(account, subscription)
        schedule["_applied"] = number
        _mark(schedule)
        _apply(account, subscription, schedule["phases"][number])
        account.emit("subscription_schedule.updated", render(account, schedule))
        after = render(account, subscription)
        previous = {name: old for name, old in before.items() if after[name] != old}
        if previous:
            account.emit("customer.subscription.updated", after, previous)
        return
    schedule["completed_at"] = account.now
    if schedule["end_behavior"] == "cancel":
        schedule.update(status="completed", current_phase=None)
        account.emit("subscription_schedule.completed", render(account, schedule))
        subscription["schedule"] = None
        account.end_subscription(account, subscription["id"])
        return
    _release(account, schedule, subscription)


def _release(account: Account, schedule: Object, subscription: Object) -> None:
    schedule.update(
        status="released",
        released_at=account.now,
        released_subscription=subscription["id"],
        subscription=None,
        current_phase=None,
    )
    subscription["schedule"] = None
    account.emit("subscription_schedule.released", render(account, schedule))
    account.emit("customer.subscription.updated", render(account, subscription), {"schedule": schedule["id"]})


def release(account: Account, call: Call) -> Object:
    values = Fields({"preserve_cancel_date": boolean, **fields.EXPAND}).read(call.params)
    schedule = account.get("subscription_schedule", call.id, in_path=True)
    _must_run(schedule)
    _release(account, schedule, account.table("subscription")[schedule["subscription"]])
    return shown(account, schedule, values)


def cancel(account: Account, call: Call) -> Object:
    values = CANCEL.read(call.params)
    schedule = account.get("subscription_schedule", call.id, in_path=True)
    _must_run(schedule)
    account.end_subscription(account, schedule["subscription"])
    return shown(account, schedule, values)


def items_changed(account: Account, subscription: Object) -> None:
    """The current phase follows changes that were made to the subscription itself."""
    schedule = account.table("subscription_schedule").get(subscription["schedule"] or "")
    if schedule is not None and schedule["status"] == "active":
        schedule["phases"][schedule["_applied"]]["items"] = [_item(item) for item in items.of(subscription)]


def subscription_ended(account: Account, subscription: Object) -> None:
    schedule = account.table("subscription_schedule").get(subscription["schedule"] or "")
    if schedule is not None and schedule["status"] == "active":
        schedule.update(status="canceled", canceled_at=account.now, current_phase=None)
        account.emit("subscription_schedule.canceled", render(account, schedule))


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    found = (
        schedule
        for schedule in account.table("subscription_schedule").values()
        if values.get("customer", schedule["customer"]) == schedule["customer"] and created_within(schedule, values)
    )
    return page(account, found, values, "/v1/subscription_schedules")


retrieve = retriever("subscription_schedule")
ROUTES = [
    Route("POST", "/v1/subscription_schedules", create),
    Route("GET", "/v1/subscription_schedules", listed),
    Route("GET", "/v1/subscription_schedules/{id}", retrieve),
    Route("POST", "/v1/subscription_schedules/{id}", update),
    Route("POST", "/v1/subscription_schedules/{id}/release", release),
    Route("POST", "/v1/subscription_schedules/{id}/cancel", cancel),
]
