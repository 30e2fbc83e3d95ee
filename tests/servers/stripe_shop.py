"""What a shop has at Stripe: five metered prices and a base price, as CATALOGUES' plan Standard has them."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from sidecar.billing.stripe_api import StripeApi

# Metric -> included units, and what each further one costs in cents.
STANDARD = {
    "llm_tokens": (1_000_000, "0.001"),
    "agent_executions": (5_000, "10"),
    "api_calls": (100_000, "0.1"),
    "storage_gb": (100, "50"),
    "user_seats": (25, "500"),
}
BASE_CENTS = 9_900


class Shop(Struct):
    """Ids of what was made; ``meters`` and ``prices`` by metric."""

    api: StripeApi
    meters: dict[str, str]
    prices: dict[str, str]
    base: str

    async def customer(self, card: str = "pm_card_visa") -> str:
        settings: Any = {"payment_method": card, "invoice_settings": {"default_payment_method": card}} if card else {}
        return str((await self.api.v1.customers.create_async(settings)).id)

    async def subscribe(self, customer: str, **more: Any) -> Any:
        """Subscribe to everything; the answer as a dictionary."""
        items = [{"price": self.base, "quantity": 1}, *({"price": price} for price in self.prices.values())]
        params: Any = {"customer": customer, "items": items, **more}
        return (await self.api.v1.subscriptions.create_async(params)).to_dict()

    async def use(self, customer: str, metric: str, value: str, **more: Any) -> Any:
        params: Any = {"event_name": metric, "payload": {"stripe_customer_id": customer, "value": value}, **more}
        return await self.api.v1.billing.meter_events.create_async(params)


async def open_shop(api: StripeApi) -> Shop:
    """Make meters, products and prices."""
    meters, prices = {}, {}
    for metric, (included, cents) in STANDARD.items():
        meters[metric] = await make_meter(api, metric)
        product = await api.v1.products.create_async({"name": metric})
        params: Any = {
            "currency": "usd",
            "product": product.id,
            "billing_scheme": "tiered",
            "tiers_mode": "graduated",
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meters[metric]},
            "tiers": [
                {"up_to": included, "unit_amount_decimal": "0"},
                {"up_to": "inf", "unit_amount_decimal": cents},
            ],
        }
        prices[metric] = (await api.v1.prices.create_async(params)).id
    product = await api.v1.products.create_async({"name": "Standard"})
    base = await api.v1.prices.create_async(
        {"currency": "usd", "product": product.id, "unit_amount": BASE_CENTS, "recurring": {"interval": "month"}}
    )
    return Shop(api, meters, prices, base.id)


async def make_meter(api: StripeApi, event_name: str) -> str:
    made = await api.v1.billing.meters.create_async(
        {
            "display_name": event_name,
            "event_name": event_name,
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
    )
    return str(made.id)
