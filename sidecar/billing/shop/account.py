"""A Stripe account read: the end of ``sidecar stripe setup`` that looks.

Guarantees: nothing is read from our own records, so an account that was emptied, changed by hand or belongs to another
            key is seen as it is.
Gives up:   accounts with more than ``OBJECTS_MAX`` products or meters: a run that would have to read them all stops.
Source: https://docs.stripe.com/api/prices, https://docs.stripe.com/api/billing/meter
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from sidecar.billing import objects
from sidecar.billing.shop.difference import Account, FoundMeter, FoundPrice, FoundProduct
from sidecar.billing.shop.offer import Terms, Tier
from sidecar.billing.stripe_api import StripeApi, errors
from sidecar.errors import Conflict

OBJECTS_MAX = 10_000
LOOKUP_KEYS_MAX = 10  # of one list call
MONTHS = {"month": 1, "year": 12}


async def read(api: StripeApi, lookup_keys: Sequence[str]) -> Account:
    """Everything that could be ours: meters, products with our mark, their active prices, and these lookup keys'."""
    with errors():
        meters = [_meter(item) async for item in _all(api.v1.billing.meters.list_async, {})]
        products = [
            _product(item)
            async for item in _all(api.v1.products.list_async, {})
            if objects.MARK in (item.get("metadata") or {})
        ]
        expand = ["data.tiers", "data.currency_options"]
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(lookup_keys), LOOKUP_KEYS_MAX):
            keys = list(lookup_keys[start : start + LOOKUP_KEYS_MAX])
            async for item in _all(api.v1.prices.list_async, {"lookup_keys": keys, "expand": expand}):
                found[item["id"]] = item
        for product in products:
            only = {"product": product.id, "active": True, "expand": expand}
            async for item in _all(api.v1.prices.list_async, only):
                found[item["id"]] = item
        found = {id_: await _complete(api, item) for id_, item in found.items()}
    product_names = {product.id: product.name for product in products}
    metrics = {meter.id: meter.event_name.removeprefix(f"{objects.PREFIX}_") for meter in meters}
    oldest_first = sorted(found.values(), key=lambda item: (item["created"], item["id"]))
    return Account(
        meters=tuple(meters),
        products=tuple(products),
        prices=tuple(_price(item, product_names, metrics) for item in oldest_first),
    )


async def _all(method: Callable[..., Awaitable[Any]], params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    page = await method({"limit": 100, **params})
    count = 0
    async for item in page.auto_paging_iter():
        count += 1
        if count > OBJECTS_MAX:
            raise Conflict(f"the Stripe account has more than {OBJECTS_MAX} objects of a kind; use one of its own")
        yield item.to_dict()


async def _complete(api: StripeApi, item: dict[str, Any]) -> dict[str, Any]:
    """A price with its tiers in every currency; a list shows only those of its own, since it expands no deeper.."""
    options = item.get("currency_options") or {}
    lacking = [one for one, option in options.items() if one != item["currency"] and "tiers" not in option]
    if item["billing_scheme"] != "tiered" or not lacking:
        return item
    expand = ["tiers", *(f"currency_options.{currency}.tiers" for currency in lacking)]
    return (await api.v1.prices.retrieve_async(item["id"], {"expand": expand})).to_dict()


def _meter(item: dict[str, Any]) -> FoundMeter:
    return FoundMeter(
        id=item["id"],
        event_name=item["event_name"],
        title=item["display_name"],
        active=item["status"] == "active",
        settings=(
            item["default_aggregation"]["formula"],
            item["customer_mapping"]["event_payload_key"],
            item["value_settings"]["event_payload_key"],
        ),
    )


def _product(item: dict[str, Any]) -> FoundProduct:
    code = item.get("tax_code") or ""
    return FoundProduct(
        id=item["id"],
        name=item["metadata"][objects.MARK],
        title=item["name"],
        active=item["active"],
        unit_label=item.get("unit_label") or "",
        tax_code=code["id"] if isinstance(code, dict) else code,
        metadata=dict(item["metadata"]),
    )


def _price(item: dict[str, Any], products: Mapping[str, str], metrics: Mapping[str, str]) -> FoundPrice:
    recurring = item.get("recurring") or {}
    months = recurring.get("interval_count", 0) * MONTHS.get(recurring.get("interval", ""), 0)
    options = {item["currency"]: item, **{key: one for key, one in (item.get("currency_options") or {}).items() if one}}
    strange = [key for key in ("transform_quantity", "custom_unit_amount") if item.get(key)]
    strange += ["volume tiers"] if item.get("tiers_mode") == "volume" else []
    meter = recurring.get("meter") or ""
    marks = item.get("metadata") or {}
    return FoundPrice(
        id=item["id"],
        lookup_key=item.get("lookup_key") or "",
        name=marks.get(objects.MARK, ""),
        active=item["active"],
        title=item.get("nickname") or "",
        tax_behavior=item.get("tax_behavior") or "unspecified",
        terms=Terms(
            product=products.get(item["product"], ""),
            currency=item["currency"],
            interval_months=months,
            meter=metrics.get(meter, meter),
            # Stripe repeats the price's own currency among the options.
            tiers={key: _tiers(item if key == item["currency"] else one) for key, one in options.items()},
            strange=", ".join(strange),
        ),
        metadata=dict(marks),
    )


def _tiers(item: Mapping[str, Any]) -> tuple[Tier, ...]:
    if not item.get("tiers"):
        return (Tier(None, _decimal(item, "unit_amount")),)
    return tuple(
        Tier(tier["up_to"], _decimal(tier, "unit_amount"), _decimal(tier, "flat_amount")) for tier in item["tiers"]
    )


def _decimal(item: Mapping[str, Any], name: str) -> Decimal:
    """An amount as a decimal, from whichever of its two forms is there."""
    exact = item.get(f"{name}_decimal")
    return Decimal(str(exact if exact is not None else item.get(name) or 0))
