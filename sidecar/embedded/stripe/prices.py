"""Prices. Their amounts never change; lookup keys move with transfer_lookup_key.

Source: https://docs.stripe.com/api/prices, https://docs.stripe.com/billing/subscriptions/usage-based/pricing-models
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sidecar.embedded.stripe import fields, products, searching
from sidecar.embedded.stripe.account import Account, Object
from sidecar.embedded.stripe.call import Call, Route, retriever, shown
from sidecar.embedded.stripe.errors import Refused, bad_parameter
from sidecar.embedded.stripe.fields import (
    Fields,
    array,
    boolean,
    by_currency,
    choice,
    clearable,
    currency,
    decimal,
    integer,
    nested,
    text,
    word_or,
)
from sidecar.embedded.stripe.listing import created_within, page
from sidecar.embedded.stripe.rendering import render

LOOKUP_KEY_MAX = 200
LOOKUP_KEYS_MAX = 10
INTERVALS = ("day", "week", "month", "year")
# The longest recurrence: three years.
INTERVAL_COUNT_MAX = {"day": 1_095, "week": 156, "month": 36, "year": 3}
AMOUNT_MAX = 999_999_999_999
TIER = Fields(
    {
        "up_to": word_or("inf", integer(1)),
        "unit_amount": integer(0, AMOUNT_MAX),
        "unit_amount_decimal": decimal(),
        "flat_amount": integer(0, AMOUNT_MAX),
        "flat_amount_decimal": decimal(),
    },
    ["up_to"],
)
CURRENCY_OPTION = Fields(
    {
        "tax_behavior": choice("exclusive", "inclusive", "unspecified"),
        "tiers": array(nested(TIER)),
        "unit_amount": integer(0, AMOUNT_MAX),
        "unit_amount_decimal": decimal(),
    }
)
RECURRING = Fields(
    {
        "interval": choice(*INTERVALS),
        "interval_count": integer(1),
        "meter": text(),
        "trial_period_days": integer(1),
        "usage_type": choice("licensed", "metered"),
    },
    ["interval"],
)
PRODUCT_DATA = Fields(
    {
        "name": text(),
        "id": text(),
        "active": boolean,
        "metadata": fields.metadata,
        "tax_code": text(),
        "unit_label": text(12),
        "statement_descriptor": text(22),
    },
    ["name"],
)
CREATE = Fields(
    {
        "active": boolean,
        "billing_scheme": choice("per_unit", "tiered"),
        "currency": currency,
        "currency_options": by_currency(nested(CURRENCY_OPTION)),
        "lookup_key": text(LOOKUP_KEY_MAX),
        "metadata": fields.metadata,
        "nickname": text(),
        "product": text(),
        "product_data": nested(PRODUCT_DATA),
        "recurring": nested(RECURRING),
        "tax_behavior": choice("exclusive", "inclusive", "unspecified"),
        "tiers": array(nested(TIER)),
        "tiers_mode": choice("graduated", "volume"),
        "transfer_lookup_key": boolean,
        "unit_amount": integer(0, AMOUNT_MAX),
        "unit_amount_decimal": decimal(),
        **fields.EXPAND,
    },
    ["currency"],
)
UPDATE = Fields(
    {
        "active": boolean,
        "lookup_key": clearable(text(LOOKUP_KEY_MAX)),
        "metadata": fields.metadata,
        "nickname": clearable(text()),
        "tax_behavior": choice("exclusive", "inclusive", "unspecified"),
        "transfer_lookup_key": boolean,
        **fields.EXPAND,
    }
)
LIST = Fields(
    {
        "active": boolean,
        "currency": currency,
        "lookup_keys": array(text(LOOKUP_KEY_MAX), LOOKUP_KEYS_MAX),
        "product": text(),
        "recurring": nested(
            Fields({"interval": choice(*INTERVALS), "meter": text(), "usage_type": choice("licensed", "metered")})
        ),
        "type": choice("one_time", "recurring"),
        **fields.CREATED,
        **fields.PAGE,
    }
)


def create(account: Account, call: Call) -> Object:
    values = CREATE.read(call.params)
    return shown(account, make(account, values), values)


def make(account: Account, values: dict[str, Any]) -> Object:
    amounts = _amounts(values)
    recurring = _recurring(account, values)
    if ("product" in values) == ("product_data" in values):
        raise bad_parameter("You must specify either `product` or `product_data` when creating a price.", "product")
    if "product" in values:
        product = account.get("product", values["product"], "product")["id"]
    else:
        product = products.make(account, values["product_data"])["id"]
    _lookup_key_free(account, None, values)
    price = account.add(
        "price",
        {
            "active": values.get("active", True),
            "billing_scheme": values.get("billing_scheme", "per_unit"),
            "currency": values["currency"],
            "currency_options": _currency_options(values, amounts),
            "custom_unit_amount": None,
            "lookup_key": None,
            "metadata": fields.merged({}, values.get("metadata")),
            "nickname": values.get("nickname"),
            "product": product,
            "recurring": recurring,
            "tax_behavior": values.get("tax_behavior", "unspecified"),
            "tiers_mode": values.get("tiers_mode"),
            "transform_quantity": None,
            "type": "recurring" if recurring else "one_time",
            **amounts,
        },
    )
    _take_lookup_key(account, price, values)
    account.emit("price.created", render(account, price))
    return price


def _recurring(account: Account, values: dict[str, Any]) -> Object | None:
    given = values.get("recurring")
    if given is None:
        return None
    metered = given.get("usage_type", "licensed") == "metered"
    if metered and "meter" not in given:
        raise bad_parameter(
            "Metered prices must be backed by meters. Pass `recurring[meter]`; usage records no longer exist.",
            "recurring[meter]",
        )
    if not metered and "meter" in given:
        raise bad_parameter("Only prices with usage_type `metered` can have a meter.", "recurring[meter]")
    count = given.get("interval_count", 1)
    if count > INTERVAL_COUNT_MAX[given["interval"]]:
        raise bad_parameter(
            "Invalid interval count: the longest recurrence is three years.", "recurring[interval_count]"
        )
    if metered:
        meter = account.get("billing.meter", given["meter"], "recurring[meter]")
        if meter["status"] == "inactive":
            raise Refused(f"The meter {meter['id']} is inactive.", param="recurring[meter]")
    return {
        "interval": given["interval"],
        "interval_count": count,
        "meter": given.get("meter"),
        "trial_period_days": given.get("trial_period_days"),
        "usage_type": given.get("usage_type", "licensed"),
    }


def _amounts(values: dict[str, Any]) -> Object:
    if values.get("billing_scheme") == "tiered":
        if "unit_amount" in values or "unit_amount_decimal" in values:
            raise bad_parameter("You may only specify one of `tiers` and `unit_amount`.", "unit_amount")
        for needed in ("tiers", "tiers_mode"):
            if needed not in values:
                raise bad_parameter(f"Missing required param: {needed}.", needed, "parameter_missing")
        return {"unit_amount": None, "unit_amount_decimal": None, "tiers": _tiers(values["tiers"])}
    for needless in ("tiers", "tiers_mode"):
        if needless in values:
            raise bad_parameter(f"`{needless}` needs `billing_scheme` to be `tiered`.", needless)
    found = _amount(values, "unit_amount", "")
    if found is None:
        raise bad_parameter("Missing required param: unit_amount.", "unit_amount", "parameter_missing")
    return {"unit_amount": _whole(found), "unit_amount_decimal": found, "tiers": None}


def _currency_options(values: dict[str, Any], own: Object) -> Object:
    """The amounts in every currency of a price, its own among them; each is priced as the price itself is."""
    found = {values["currency"]: {**own, "tax_behavior": values.get("tax_behavior", "unspecified")}}
    for name, given in values.get("currency_options", {}).items():
        if name == values["currency"]:
            raise bad_parameter("The price's own currency is no option.", f"currency_options[{name}]")
        amounts = _amounts({**{key: values[key] for key in ("billing_scheme", "tiers_mode") if key in values}, **given})
        found[name] = {**amounts, "tax_behavior": given.get("tax_behavior", "unspecified")}
    return {name: {"custom_unit_amount": None, **one} for name, one in found.items()}


def _amount(values: dict[str, Any], name: str, within: str) -> str | None:
    """The exact amount, from whichever of the two parameters was given."""
    exact = f"{name}_decimal"
    if name in values and exact in values:
        param = f"{within}[{exact}]" if within else exact
        raise bad_parameter(
            f"You may only specify one of these parameters: {name}, {exact}.", param, "parameters_exclusive"
        )
    found = values.get(exact, str(values[name]) if name in values else None)
    if found is not None and Decimal(found) < 0:
        raise bad_parameter("This value must be greater than or equal to 0.", within or exact)
    return found


def _whole(amount: str | None) -> int | None:
    """The rounded field of an exact amount: null when it is no whole number of minor units."""
    return int(amount) if amount is not None and "." not in amount else None


def _tiers(given: list[dict[str, Any]]) -> list[Object]:
    tiers: list[Object] = []
    last = 0
    for number, tier in enumerate(given):
        within = f"tiers[{number}]"
        final = number == len(given) - 1
        if (tier["up_to"] == "inf") != final:
            raise bad_parameter("Exactly the last tier must have `up_to` set to `inf`.", f"{within}[up_to]")
        if not final:
            if tier["up_to"] <= last:
                raise bad_parameter("Tiers must be in ascending order of `up_to`.", f"{within}[up_to]")
            last = tier["up_to"]
        unit, flat = _amount(tier, "unit_amount", within), _amount(tier, "flat_amount", within)
        if unit is None and flat is None:
            raise bad_parameter(f"Missing required param: {within}[unit_amount].", within, "parameter_missing")
        tiers.append(
            {
                "flat_amount": _whole(flat),
                "flat_amount_decimal": flat,
                "unit_amount": _whole(unit),
                "unit_amount_decimal": unit,
                "up_to": None if final else tier["up_to"],
            }
        )
    if not tiers:
        raise bad_parameter("Missing required param: tiers.", "tiers", "parameter_missing")
    return tiers


def _holder(account: Account, key: str | None) -> Object | None:
    if key is None:
        return None
    return next((price for price in account.table("price").values() if price["lookup_key"] == key), None)


def _lookup_key_free(account: Account, price: Object | None, values: dict[str, Any]) -> None:
    holder = _holder(account, values.get("lookup_key"))
    if holder is not None and holder is not price and not values.get("transfer_lookup_key", False):
        raise Refused(
            f"A price (`{holder['id']}`) already uses that lookup key.",
            code="resource_already_exists",
            param="lookup_key",
        )


def _take_lookup_key(account: Account, price: Object, values: dict[str, Any]) -> None:
    if "lookup_key" not in values:
        return
    _lookup_key_free(account, price, values)
    key = values["lookup_key"]
    holder = _holder(account, key)
    if holder is not None and holder is not price:
        holder["lookup_key"] = None
        account.emit("price.updated", render(account, holder), {"lookup_key": key})
    price["lookup_key"] = key


def update(account: Account, call: Call) -> Object:
    values = UPDATE.read(call.params)
    price = account.get("price", call.id, in_path=True)
    behaviour = values.get("tax_behavior", price["tax_behavior"])
    if behaviour != price["tax_behavior"] and price["tax_behavior"] != "unspecified":
        raise Refused(
            "Once specified as either `inclusive` or `exclusive`, `tax_behavior` cannot be changed.",
            param="tax_behavior",
        )
    before = render(account, price)
    _take_lookup_key(account, price, values)
    for name in ("active", "nickname", "tax_behavior"):
        if name in values:
            price[name] = values[name]
    price["metadata"] = fields.merged(price["metadata"], values.get("metadata"))
    previous = {name: old for name, old in before.items() if price.get(name) != old}
    if previous:
        account.emit("price.updated", render(account, price), previous)
    account.changes += 1
    return shown(account, price, values)


def listed(account: Account, call: Call) -> Object:
    values = LIST.read(call.params)
    wanted = values.get("recurring", {})
    found = (
        price
        for price in account.table("price").values()
        if all(values.get(name, price[name]) == price[name] for name in ("active", "currency", "product", "type"))
        and ("lookup_keys" not in values or price["lookup_key"] in values["lookup_keys"])
        and all((price["recurring"] or {}).get(name) == value for name, value in wanted.items())
        and created_within(price, values)
    )
    return page(account, found, values, "/v1/prices")


def search(account: Account, call: Call) -> Object:
    return searching.search(account, call, "price", "/v1/prices/search")


ROUTES = [
    Route("POST", "/v1/prices", create),
    Route("GET", "/v1/prices", listed),
    Route("GET", "/v1/prices/search", search),
    Route("GET", "/v1/prices/{id}", retriever("price")),
    Route("POST", "/v1/prices/{id}", update),
]
