"""Changes made in a Stripe account: the end of ``sidecar stripe setup`` that writes.

Guarantees: every change carries an idempotency key and is tried again under it only while its fate is unknown; after a
            failure the next run reads what became of it. Amounts go out as exact texts.
Gives up:   keys that survive a run: Stripe would repeat what it answered a day ago, of a price archived since.
Source: https://docs.stripe.com/api/prices/create, https://docs.stripe.com/api/idempotent_requests
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from sidecar.billing import objects
from sidecar.billing.objects import StripeObject
from sidecar.billing.shop.difference import Change, metadata
from sidecar.billing.shop.offer import Tier, WantedMeter, WantedPrice, WantedProduct
from sidecar.billing.stripe_api import StripeApi, errors
from sidecar.errors import StripeUnavailable

TRIES = 3
YEAR_MONTHS = 12
Result = TypeVar("Result")


async def apply(
    api: StripeApi, steps: Sequence[Change], pause_s: float = 1, told: Callable[[Change], None] | None = None
) -> list[StripeObject]:
    """Make the changes in their order; the objects that are wanted, with their ids."""
    run = secrets.token_hex(8)
    ids: dict[tuple[str, str], str] = {}
    made: list[StripeObject] = []
    for number, step in enumerate(steps):
        if told is not None:
            told(step)
        options = {"idempotency_key": f"{objects.PREFIX}-setup-{run}-{number}"}
        id_ = await _applied(api, step, ids, options, pause_s)
        if step.wanted is not None:
            ids[step.kind, step.name] = id_
            made.append(_made(step.wanted, step.kind, step.name, id_))
    return made


async def _applied(
    api: StripeApi, step: Change, ids: Mapping[tuple[str, str], str], options: dict[str, str], pause_s: float
) -> str:
    call: Callable[[], Awaitable[Any]] | None = None
    wanted: Any = step.wanted
    if step.action == "archive":
        call = _call(api.v1.prices.update_async, step.id, {"active": False}, options)
    elif step.action in ("create", "replace"):
        if step.kind == "meter":
            call = _call(api.v1.billing.meters.create_async, _meter_params(wanted), options)
        elif step.kind == "product":
            call = _call(api.v1.products.create_async, _product_params(wanted), options)
        else:
            call = _call(api.v1.prices.create_async, price_params(wanted, ids), options)
    elif step.action == "update":
        if step.kind == "meter":
            return await _updated_meter(api, step, wanted, options, pause_s)
        if step.kind == "product":
            params = {"active": True, **_product_params(wanted)}
            # An empty text unsets the label; a tax code is only ever set.
            params.setdefault("unit_label", "")
            call = _call(api.v1.products.update_async, step.id, params, options)
        else:
            params = {"active": True, "nickname": wanted.title, "metadata": metadata(wanted)}
            if any(reason.startswith("tax_behavior ") for reason in step.reasons):
                params["tax_behavior"] = wanted.tax_behavior
            call = _call(api.v1.prices.update_async, step.id, params, options)
    if call is None:
        return step.id
    return str((await _tried(call, pause_s)).id)


async def _updated_meter(
    api: StripeApi, step: Change, wanted: WantedMeter, options: dict[str, str], pause_s: float
) -> str:
    meters = api.v1.billing.meters
    if any(reason.startswith("active ") for reason in step.reasons):
        key = {"idempotency_key": options["idempotency_key"] + "-reactivate"}
        await _tried(_call(meters.reactivate_async, step.id, {}, key), pause_s)
    if any(reason.startswith("name ") for reason in step.reasons):
        await _tried(_call(meters.update_async, step.id, {"display_name": wanted.title}, options), pause_s)
    return step.id


def _call(method: Callable[..., Awaitable[Any]], *arguments: Any) -> Callable[[], Awaitable[Any]]:
    return lambda: method(*arguments)


async def _tried(call: Callable[[], Awaitable[Result]], pause_s: float) -> Result:
    """Try a call a few times under its one idempotency key: at Stripe it takes effect once at most."""
    for attempt in range(1, TRIES):
        try:
            with errors():
                return await call()
        except StripeUnavailable:
            await asyncio.sleep(pause_s * attempt)
    with errors():
        return await call()


def _meter_params(wanted: WantedMeter) -> dict[str, Any]:
    return {
        "display_name": wanted.title,
        "event_name": wanted.event_name,
        "default_aggregation": {"formula": "sum"},
        "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
        "value_settings": {"event_payload_key": "value"},
    }


def _product_params(wanted: WantedProduct) -> dict[str, Any]:
    params: dict[str, Any] = {"name": wanted.title, "metadata": metadata(wanted)}
    if wanted.unit_label:
        params["unit_label"] = wanted.unit_label
    if wanted.tax_code:
        params["tax_code"] = wanted.tax_code
    return params


def price_params(wanted: WantedPrice, ids: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    terms = wanted.terms
    years, months = divmod(terms.interval_months, YEAR_MONTHS)
    recurring: dict[str, Any] = {
        "interval": "month" if months else "year",
        "interval_count": terms.interval_months if months else years,
        "usage_type": "metered" if terms.meter else "licensed",
    }
    if terms.meter:
        recurring["meter"] = ids["meter", terms.meter]
    params: dict[str, Any] = {
        "currency": terms.currency,
        "product": ids["product", terms.product],
        "nickname": wanted.title,
        "recurring": recurring,
        "metadata": metadata(wanted),
        "lookup_key": wanted.lookup_key,
        "transfer_lookup_key": True,
        **_amounts(terms.tiers[terms.currency]),
    }
    tax = {} if wanted.tax_behavior == "unspecified" else {"tax_behavior": wanted.tax_behavior}
    others = {
        currency: {**_tiers_params(tiers), **tax}
        for currency, tiers in terms.tiers.items()
        if currency != terms.currency
    }
    return params | tax | ({"currency_options": others} if others else {})


def _amounts(tiers: Sequence[Tier]) -> dict[str, Any]:
    mode = {"billing_scheme": "tiered", "tiers_mode": "graduated"} if len(tiers) > 1 else {"billing_scheme": "per_unit"}
    return {**mode, **_tiers_params(tiers)}


def _tiers_params(tiers: Sequence[Tier]) -> dict[str, Any]:
    # Texts, not Decimals: the SDK writes a small Decimal with an exponent, which Stripe does not take.
    if len(tiers) == 1:
        return {"unit_amount_decimal": f"{tiers[0].unit_amount:f}"}
    return {
        "tiers": [
            {"up_to": "inf" if tier.up_to is None else tier.up_to, "unit_amount_decimal": f"{tier.unit_amount:f}"}
            for tier in tiers
        ]
    }


def _made(wanted: WantedMeter | WantedProduct | WantedPrice, kind: objects.Kind, name: str, id_: str) -> StripeObject:
    return StripeObject(
        id=id_,
        kind=kind,
        name=name,
        plan="" if isinstance(wanted, WantedMeter) else wanted.plan,
        metric=wanted.metric,
        event_name=wanted.event_name if isinstance(wanted, WantedMeter) else "",
        interval_months=wanted.terms.interval_months if isinstance(wanted, WantedPrice) else 0,
    )
