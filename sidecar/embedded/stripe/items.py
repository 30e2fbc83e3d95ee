"""Items of subscriptions: adding, exchanging and removing them, with prorations.

Guarantees: a licensed item is credited and charged by the second. A metered item that goes has its usage billed with
            the next invoice when prorations are on; without, nobody pays for that usage, as at Stripe.
Gives up:   price_data, discounts and tax rates of items.
Source: https://docs.stripe.com/billing/subscriptions/prorations, https://docs.stripe.com/api/subscriptions/update
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sidecar.embedded.stripe import cycle, invoicing
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.errors import Refused, bad_parameter
from sidecar.embedded.stripe.fields import Fields, boolean, integer, merged, metadata, nested, text
from sidecar.embedded.stripe.listing import listing
from sidecar.embedded.stripe.pricing import Charge, charges, in_currency, rounded

COUNT_MAX = 20
NEW = Fields({"price": text(), "quantity": integer(0), "metadata": metadata}, ["price"])
CHANGED = Fields(
    {
        "id": text(),
        "price": text(),
        "quantity": integer(0),
        "metadata": metadata,
        "deleted": boolean,
        "clear_usage": boolean,
    }
)
NEW_KIND = nested(NEW)
CHANGED_KIND = nested(CHANGED)


def of(subscription: Object) -> list[Object]:
    found: list[Object] = subscription["items"]["data"]
    return found


def metered(account: Account, item: Object) -> bool:
    return bool(account.table("price")[item["price"]]["recurring"]["usage_type"] == "metered")


def recurring_price(account: Account, identity: str, param: str) -> Object:
    price = account.get("price", identity, param)
    if not price["active"]:
        raise Refused(
            f"The price specified is inactive. This field only accepts active prices. Price: {identity}", param=param
        )
    if price["recurring"] is None:
        raise Refused(
            f"The price specified is set to `type=one_time` but this field only accepts prices with "
            f"`type=recurring`. Price: {identity}",
            param=param,
        )
    return price


def make(account: Account, subscription: Object, given: dict[str, Any], param: str) -> Object:
    """A new item, whose period is set by whoever adds it."""
    price = recurring_price(account, given["price"], f"{param}[price]")
    if subscription["currency"] not in price["currency_options"]:
        raise Refused(
            f"The price specified only supports `{price['currency']}`. This doesn't match the expected currency: "
            f"`{subscription['currency']}`.",
            param=f"{param}[price]",
        )
    if any(price["id"] == item["price"] for item in of(subscription)):
        raise Refused(
            f"Cannot add multiple subscription items with the same plan: {price['id']}", param=f"{param}[price]"
        )
    usage_type = price["recurring"]["usage_type"]
    if usage_type == "metered" and "quantity" in given:
        raise Refused("You cannot set the quantity for metered plans.", param=f"{param}[quantity]")
    item: Object = {
        "id": account.new_id("subscription_item"),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": account.now,
        "current_period_end": 0,
        "current_period_start": 0,
        "discounts": [],
        "metadata": merged({}, given.get("metadata")),
        "price": price["id"],
        "subscription": subscription["id"],
        "tax_rates": [],
        "_length_s": 0,
        "_usage_from": account.now,
        "_currency": subscription["currency"],
    }
    if usage_type == "licensed":
        item["quantity"] = given.get("quantity", 1)
    return item


def set_period(account: Account, item: Object, anchor_s: int, instant_s: int) -> None:
    """Put an item into the period of its price in which an instant lies."""
    recurring = account.table("price")[item["price"]]["recurring"]
    start, end = cycle.period(anchor_s, recurring["interval"], recurring["interval_count"], instant_s)
    item["current_period_start"], item["current_period_end"] = start, end
    item["_length_s"] = end - start


def keep(subscription: Object, data: list[Object]) -> None:
    found = listing(data, f"/v1/subscription_items?subscription={subscription['id']}")
    found["total_count"] = len(data)
    subscription["items"] = found


def first_lines(account: Account, item: Object, share: tuple[int, int] | None = None) -> list[Object]:
    """What a licensed item costs in advance for its period; ``share`` of it when it began late."""
    if metered(account, item):
        return []
    period = (item["current_period_start"], item["current_period_end"])
    if share is None:
        return invoicing.price_lines(account, item, Decimal(item["quantity"]), period)
    return [_prorated(account, item, share, 1)]


def usage_spec(item: Object) -> Object:
    """The usage that an ended period of a metered item bills."""
    start = max(item["current_period_start"], item["_usage_from"])
    return invoicing.metered_spec(item, start, item["current_period_end"])


def _prorated(account: Account, item: Object, span: tuple[int, int], sign: int) -> Object:
    """A share of a licensed item's period, as a charge or a credit."""
    price = account.table("price")[item["price"]]
    priced = in_currency(price, item["_currency"])
    full = sum(charge.amount for charge in charges(priced, Decimal(item["quantity"])))
    # Of the whole period, also when the item began in the middle of it.
    amount = rounded(Decimal(full) * (span[1] - span[0]) / Decimal(item["_length_s"])) * sign
    product = account.table("product")[price["product"]]["name"]
    words = "Remaining time on" if sign > 0 else "Unused time on"
    charge = Charge(Decimal(item["quantity"]), priced["unit_amount_decimal"], amount, "")
    return invoicing.line(account, item, charge, span, f"{words} {product}", proration=True)


def _used(account: Account, item: Object) -> list[Object]:
    """What was used of a metered item until now, at its price."""
    start = max(item["current_period_start"], item["_usage_from"])
    if start >= account.now:
        return []
    price = account.table("price")[item["price"]]
    meter = account.table("billing.meter")[price["recurring"]["meter"]]
    customer = account.table("subscription")[item["subscription"]]["customer"]
    formula = meter["default_aggregation"]["formula"]
    usage = account.metering.total(meter["id"], customer, formula, start, account.now)
    return invoicing.price_lines(account, item, usage, (start, account.now)) if usage > 0 else []


def left(account: Account, item: Object) -> list[Object]:
    """What an item that goes now leaves to be billed: a credit for unused time, or its usage."""
    if metered(account, item):
        return _used(account, item)
    if item["current_period_end"] <= account.now:
        return []
    return [_prorated(account, item, (account.now, item["current_period_end"]), -1)]


def change(
    account: Account, subscription: Object, given: list[dict[str, Any]], *, prorate: bool, param: str = "items"
) -> list[Object]:
    """Apply changes of items; returns the lines of prorations, and the caller moves periods if it has to."""
    data = list(of(subscription))
    lines: list[Object] = []
    free = subscription["status"] == "trialing"
    before = of(subscription)
    for number, one in enumerate(given):
        within = f"{param}[{number}]"
        if "id" not in one:
            if "price" not in one:
                raise bad_parameter(
                    f"Missing required param: {within}[price].", f"{within}[price]", "parameter_missing"
                )
            gone = {item["id"] for item in before} - {item["id"] for item in data}
            keep(subscription, [item for item in data if item["id"] not in gone])
            added = make(account, subscription, one, within)
            _join(account, subscription, added)
            data.append(added)
            lines += _rest(account, added) if prorate and not free else []
            continue
        item = next((known for known in data if known["id"] == one["id"]), None)
        if item is None:
            raise Refused(f"No such subscription_item: '{one['id']}'", code="resource_missing", param=f"{within}[id]")
        if one.get("deleted"):
            lines += left(account, item) if prorate and not free else []
            data.remove(item)
            continue
        data[data.index(item)] = _exchanged(
            account, subscription, item, one, within, lines, prorate=prorate and not free
        )
    if not data:
        raise Refused("A subscription must have at least one active plan.", param=param)
    if len(data) > COUNT_MAX:
        raise Refused(f"A subscription can have at most {COUNT_MAX} items.", param=param)
    keep(subscription, data)
    return lines


def _join(account: Account, subscription: Object, item: Object) -> None:
    """A new item joins the cycle of its subscription."""
    if subscription["status"] == "trialing":
        item["current_period_start"], item["current_period_end"] = account.now, subscription["trial_end"]
    else:
        set_period(account, item, subscription["billing_cycle_anchor"], account.now)


def _rest(account: Account, item: Object) -> list[Object]:
    if metered(account, item):
        return []
    return [_prorated(account, item, (account.now, item["current_period_end"]), 1)]


def _exchanged(
    account: Account,
    subscription: Object,
    item: Object,
    given: dict[str, Any],
    within: str,
    lines: list[Object],
    *,
    prorate: bool,
) -> Object:
    """One item with another price or quantity."""
    after = {**item, "metadata": merged(item["metadata"], given.get("metadata"))}
    if "price" in given and given["price"] != item["price"]:
        others = [other for other in of(subscription) if other["id"] != item["id"]]
        made = make(account, {**subscription, "items": {"data": others}}, {"price": given["price"]}, within)
        after["price"] = made["price"]
        after.pop("quantity", None)
        if "quantity" in made:
            after["quantity"] = item.get("quantity", 1)
        if prorate and metered(account, after):
            after["_usage_from"] = account.now
        _join(account, subscription, after)
    if "quantity" in given:
        if metered(account, after):
            raise Refused("You cannot set the quantity for metered plans.", param=f"{within}[quantity]")
        after["quantity"] = given["quantity"]
    if prorate and (after["price"], after.get("quantity")) != (item["price"], item.get("quantity")):
        lines += left(account, item) + _rest(account, after)
    return after


def wait(account: Account, subscription: Object, lines: list[Object]) -> None:
    """Keep lines for the next invoice."""
    for line in lines:
        account.add(
            "invoiceitem",
            {
                "amount": line["amount"],
                "currency": line["currency"],
                "customer": subscription["customer"],
                "date": account.now,
                "description": line["description"],
                "proration": True,
                "subscription": subscription["id"],
                "_line": line,
            },
        )
