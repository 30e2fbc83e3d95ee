"""Subscriptions: create, change, cancel, resume.

Guarantees: the statuses follow payments and time as documented; current_period_* are on items only.
Gives up:   pending updates, billing thresholds, add_invoice_items and everything the parameters below do not name.
Source: https://docs.stripe.com/api/subscriptions
"""

from __future__ import annotations

import copy
from typing import Any

from sidecar.embedded.stripe import cycle, cycles, fields, items, payments, schedules
from sidecar.embedded.stripe import subscription_fields as fields_of
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import Call, Route, retriever, shown
from sidecar.embedded.stripe.errors import Refused, bad_parameter
from sidecar.embedded.stripe.listing import created_within, page
from sidecar.embedded.stripe.rendering import render

PLAIN = ("cancel_at_period_end", "collection_method", "days_until_due", "default_payment_method", "description")


def create(account: Account, call: Call) -> Object:
    values = fields_of.CREATE.read(call.params)
    return shown(account, make(account, values), values)


def make(account: Account, values: dict[str, Any]) -> Object:
    """Start a subscription; also for checkout sessions."""
    customer = account.get("customer", values["customer"], "customer")
    if not values["items"]:
        raise bad_parameter("Missing required param: items.", "items", "parameter_missing")
    first = items.recurring_price(account, values["items"][0]["price"], "items[0][price]")
    subscription = _blank(account, customer["id"], values.get("currency") or first["currency"])
    _settings(account, subscription, values)
    trial_end = _trial_end(account, values)
    anchor = values.get("billing_cycle_anchor", trial_end or account.now)
    subscription["billing_cycle_anchor"] = anchor
    data: list[Object] = []
    for number, given in enumerate(values["items"]):
        items.keep(subscription, data)
        data = [*data, items.make(account, subscription, given, f"items[{number}]")]
    items.keep(subscription, data)
    if trial_end is not None:
        subscription.update(status="trialing", trial_start=account.now, trial_end=trial_end)
    lines = _first_periods(account, subscription, values)
    _payable(account, subscription, values, sum(line["amount"] for line in lines))
    subscription = account.add("subscription", subscription)
    customer["currency"] = subscription["currency"]
    result = cycles.bill_now(account, subscription, "subscription_create", (account.now, account.now), lines, [])
    if result != payments.PAID and subscription["collection_method"] == "charge_automatically":
        if values.get("payment_behavior") == "error_if_incomplete":
            del account.table("subscription")[subscription["id"]]
            raise payments.declined(result)
        subscription["status"] = "incomplete"
    account.emit("customer.subscription.created", render(account, subscription))
    cycles.plan(account, subscription)
    return subscription


def _blank(account: Account, customer: str, money: str) -> Object:
    return {
        "id": account.new_id("subscription"),
        "object": "subscription",
        "created": account.now,
        "livemode": False,
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": account.now,
        "billing_cycle_anchor_config": None,
        "billing_mode": {"type": "flexible", "flexible": {"proration_discounts": "included"}},
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "feedback_option": None, "reason": None},
        "collection_method": "charge_automatically",
        "currency": money,
        "customer": customer,
        "customer_account": None,
        "days_until_due": None,
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": {"object": "list", "data": [], "has_more": False, "url": ""},
        "latest_invoice": None,
        "metadata": {},
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": account.now,
        "status": "active",
        "test_clock": None,
        "transfer_data": None,
        "trial_end": None,
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": None,
        "_next": None,
        "_warned": False,
    }


def _settings(account: Account, subscription: Object, values: dict[str, Any]) -> None:
    """What create and update set alike."""
    if values.get("default_payment_method") is not None:
        account.get("payment_method", values["default_payment_method"], "default_payment_method")
    if values.get("collection_method", subscription["collection_method"]) == "send_invoice":
        if values.get("days_until_due", subscription["days_until_due"]) is None:
            raise bad_parameter(
                "`days_until_due` is required when `collection_method` is `send_invoice`.",
                "days_until_due",
                "parameter_missing",
            )
    elif values.get("days_until_due") is not None:
        raise bad_parameter(
            "`days_until_due` can only be set when `collection_method` is `send_invoice`.", "days_until_due"
        )
    for name in PLAIN:
        if name in values:
            subscription[name] = values[name]
    subscription["metadata"] = fields.merged(subscription["metadata"], values.get("metadata"))
    for name in ("trial_settings", "payment_settings", "automatic_tax"):
        if name in values:
            subscription[name] = {**subscription[name], **values[name]}
    if "cancel_at" in values:
        subscription["cancel_at"] = values["cancel_at"]
    if values.get("cancel_at_period_end") or values.get("cancel_at"):
        subscription["canceled_at"] = subscription["canceled_at"] or account.now
        subscription["cancellation_details"]["reason"] = "cancellation_requested"
    elif values.get("cancel_at_period_end") is False:
        subscription["canceled_at"] = None
        subscription["cancellation_details"]["reason"] = None


def _trial_end(account: Account, values: dict[str, Any]) -> int | None:
    if "trial_period_days" in values and "trial_end" in values:
        raise bad_parameter(
            "You can only use one of trial_end and trial_period_days.", "trial_end", "parameters_exclusive"
        )
    if "trial_period_days" in values:
        return account.now + int(values["trial_period_days"]) * cycle.DAY_S
    given = values.get("trial_end", "now")
    if given == "now":
        return None
    if given <= account.now:
        raise Refused("Invalid timestamp: must be an integer Unix timestamp in the future.", param="trial_end")
    if given > account.now + fields_of.TRIAL_DAYS_MAX * cycle.DAY_S:
        raise Refused("Trials can be at most two years long.", param="trial_end")
    return int(given)


def _first_periods(account: Account, subscription: Object, values: dict[str, Any]) -> list[Object]:
    """Put the items into their first periods; returns the lines of the first invoice."""
    now, anchor = account.now, subscription["billing_cycle_anchor"]
    lines: list[Object] = []
    for item in items.of(subscription):
        if subscription["status"] == "trialing":
            item["current_period_start"], item["current_period_end"] = now, subscription["trial_end"]
            continue
        items.set_period(account, item, anchor, now)
        if anchor <= now:
            lines += items.first_lines(account, item)
            continue
        if item["current_period_end"] > anchor:
            raise Refused(
                "billing_cycle_anchor cannot be later than next natural billing date", param="billing_cycle_anchor"
            )
        if values.get("proration_behavior", "create_prorations") != "none":
            lines += items.first_lines(account, item, (now, item["current_period_end"]))
        item["current_period_start"] = now
    if values.get("billing_cycle_anchor", now) < now:  # one that nobody gave may be of the second before
        raise Refused("billing_cycle_anchor must be in the future.", param="billing_cycle_anchor")
    return lines


def _payable(account: Account, subscription: Object, values: dict[str, Any], amount: int) -> None:
    """Refuse what could never be paid, before anything is made."""
    customer = subscription["customer"]
    if (
        amount > 0
        and account.options.payment_method_needed
        and subscription["collection_method"] == "charge_automatically"
        and values.get("payment_behavior") != "default_incomplete"
        and customer not in account.options.payments
        and payments.method_of(account, customer, subscription) is None
    ):
        raise Refused(
            "This customer has no attached payment source or default payment method. Please consider adding a "
            "default payment method. For more information, visit "
            "https://stripe.com/docs/billing/subscriptions/payment-methods-setting#payment-method-priority.",
            code="resource_missing",
        )


def update(account: Account, call: Call) -> Object:
    values = fields_of.UPDATE.read(call.params)
    subscription = account.get("subscription", call.id, in_path=True)
    _editable(subscription, values)
    kept = copy.deepcopy(subscription)
    before = render(account, subscription)
    try:
        _change(account, subscription, values)
    except Refused:
        subscription.clear()
        subscription.update(kept)
        raise
    after = render(account, subscription)
    previous = {name: old for name, old in before.items() if after[name] != old}
    if previous:
        account.emit("customer.subscription.updated", after, previous)
    account.changes += 1
    cycles.plan(account, subscription)
    return shown(account, subscription, values)


def _editable(subscription: Object, values: dict[str, Any]) -> None:
    if subscription["status"] in cycles.ENDED and set(values) - {"metadata", "cancellation_details", "expand"}:
        raise Refused(
            "A canceled subscription can only update its cancellation_details and metadata.",
            param=next(iter(values), None),
        )
    if subscription["schedule"] and ("cancel_at_period_end" in values or "cancel_at" in values):
        raise Refused(
            f"The subscription is managed by the subscription schedule `{subscription['schedule']}`, and updating any "
            "cancelation behavior directly is not allowed. Please update the schedule instead.",
            param="cancel_at_period_end",
        )


def _change(account: Account, subscription: Object, values: dict[str, Any]) -> None:
    _settings(account, subscription, values)
    if "pause_collection" in values:
        paused = values["pause_collection"]
        subscription["pause_collection"] = paused and {"resumes_at": None, **paused}
    if "cancellation_details" in values:
        subscription["cancellation_details"].update(values["cancellation_details"])
    proration = values.get("proration_behavior", "create_prorations")
    intervals = _intervals(account, subscription)
    lines: list[Object] = []
    if "items" in values:
        lines = items.change(account, subscription, values["items"], prorate=proration != "none")
        schedules.items_changed(account, subscription)
    if "trial_end" in values:
        _move_trial(account, subscription, values)
        return
    # A change of the interval moves the anchor, as asking for it does.
    moved = values.get("billing_cycle_anchor", {}).get("type") == "now" or not (
        intervals & _intervals(account, subscription)
    )
    if moved and subscription["status"] != "trialing":
        items.wait(account, subscription, lines)
        for item in items.of(subscription):
            if items.metered(account, item):
                items.wait(account, subscription, items.left(account, item))
        cycles.begin(account, subscription, account.now, at_once=True)
        return
    items.wait(account, subscription, lines)
    if lines and proration == "always_invoice":
        period = (account.now, account.now)
        cycles.bill_now(account, subscription, "subscription_update", period, [], [])


def _intervals(account: Account, subscription: Object) -> set[tuple[str, int]]:
    found = set()
    for item in items.of(subscription):
        recurring = account.table("price")[item["price"]]["recurring"]
        found.add((recurring["interval"], recurring["interval_count"]))
    return found


def _move_trial(account: Account, subscription: Object, values: dict[str, Any]) -> None:
    ends = _trial_end(account, values)
    if ends is None:
        if subscription["status"] == "trialing":
            subscription.update(trial_end=account.now, status="active")
            cycles.begin(account, subscription, account.now, at_once=True)
        return
    subscription.update(trial_end=ends, status="trialing", billing_cycle_anchor=ends, _warned=False)
    subscription["trial_start"] = subscription["trial_start"] or account.now
    for item in items.of(subscription):
        item["current_period_end"] = ends


def cancel(account: Account, call: Call) -> Object:
    values = fields_of.CANCEL.read(call.params)
    subscription = account.get("subscription", call.id, in_path=True)
    if subscription["status"] in cycles.ENDED:
        raise Refused(f"No such subscription: '{call.id}'", status=404, code="resource_missing", param="id")
    subscription["cancellation_details"].update(
        {**values.get("cancellation_details", {}), "reason": "cancellation_requested"}
    )
    cycles.end(
        account,
        subscription,
        invoice_now=values.get("invoice_now", False),
        prorate=values.get("prorate", False),
    )
    return shown(account, subscription, values)


def resume(account: Account, call: Call) -> Object:
    values = fields_of.RESUME.read(call.params)
    subscription = account.get("subscription", call.id, in_path=True)
    if subscription["status"] != "paused":
        raise Refused("Only paused subscriptions can be resumed.", param="id")
    if values.get("billing_cycle_anchor", {}).get("type") == "unchanged":
        raise bad_parameter("The stand-in resumes with the anchor `now` only.", "billing_cycle_anchor")
    subscription["status"] = "active"
    result = cycles.begin(account, subscription, account.now, at_once=True)
    if result != payments.PAID:
        subscription["status"] = "paused"
    else:
        account.emit("customer.subscription.updated", render(account, subscription), {"status": "paused"})
        account.emit("customer.subscription.resumed", render(account, subscription))
    cycles.plan(account, subscription)
    return shown(account, subscription, values)


def listed(account: Account, call: Call) -> Object:
    values = fields_of.LIST.read(call.params)
    wanted = values.get("status", "not canceled")
    found = (
        subscription
        for subscription in account.table("subscription").values()
        if _has_status(subscription["status"], wanted)
        and values.get("customer", subscription["customer"]) == subscription["customer"]
        and values.get("collection_method", subscription["collection_method"]) == subscription["collection_method"]
        and ("price" not in values or any(item["price"] == values["price"] for item in items.of(subscription)))
        and created_within(subscription, values)
    )
    return page(account, found, values, "/v1/subscriptions")


def _has_status(status: str, wanted: str) -> bool:
    if wanted == "not canceled":
        return status != "canceled"
    return wanted in ("all", status) or (wanted == "ended" and status in cycles.ENDED)


ROUTES = [
    Route("POST", "/v1/subscriptions", create),
    Route("GET", "/v1/subscriptions", listed),
    Route("GET", "/v1/subscriptions/{id}", retriever("subscription")),
    Route("POST", "/v1/subscriptions/{id}", update),
    Route("DELETE", "/v1/subscriptions/{id}", cancel),
    Route("POST", "/v1/subscriptions/{id}/resume", resume),
]
