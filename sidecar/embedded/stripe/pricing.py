"""What a quantity costs by a price: exact decimals, and one rounding per invoice line, half up.

Guarantees: a graduated price makes one line per tier that was reached, as on the real invoices.
Source: https://docs.stripe.com/billing/subscriptions/usage-based/pricing-models,
        https://docs.stripe.com/products-prices/pricing-models#rounding
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, localcontext

from msgspec import Struct

from sidecar.embedded.stripe.account import Object
from sidecar.embedded.stripe.fields import plain

DIGITS = 60


class Charge(Struct, frozen=True):
    """One line's part of a price."""

    quantity: Decimal
    unit_amount_decimal: str | None
    amount: int
    label: str


def rounded(exact: Decimal) -> int:
    """To whole minor units, half away from zero."""
    return int(exact.quantize(Decimal(1), ROUND_HALF_UP))


def in_currency(price: Object, currency: str) -> Object:
    """A price as who pays in a currency has it: its own, or one of its options."""
    if currency == price["currency"]:
        return price
    return {**price, **price["currency_options"][currency], "currency": currency}


def charges(price: Object, quantity: Decimal) -> list[Charge]:
    """The lines of one price; a negative quantity bills as none."""
    quantity = max(quantity, Decimal())
    with localcontext() as context:
        context.prec = DIGITS
        if price["billing_scheme"] == "per_unit":
            unit = price["unit_amount_decimal"]
            return [Charge(quantity, unit, rounded(quantity * Decimal(unit)), "")]
        if price["tiers_mode"] == "volume":
            return _volume(price, quantity)
        return _graduated(price, quantity)


def _volume(price: Object, quantity: Decimal) -> list[Charge]:
    for number, tier in enumerate(price["tiers"], 1):
        if tier["up_to"] is None or quantity <= tier["up_to"]:
            return _of_tier(tier, number, quantity)
    raise AssertionError("the last tier has no end")


def _graduated(price: Object, quantity: Decimal) -> list[Charge]:
    found: list[Charge] = []
    below = Decimal()
    for number, tier in enumerate(price["tiers"], 1):
        top = quantity if tier["up_to"] is None else min(quantity, Decimal(tier["up_to"]))
        if number == 1 or top > below:
            found += _of_tier(tier, number, top - below)
        below = max(below, top)
    return found


def _of_tier(tier: Object, number: int, quantity: Decimal) -> list[Charge]:
    found = []
    unit, flat = tier["unit_amount_decimal"], tier["flat_amount_decimal"]
    if unit is not None or flat is None:
        amount = rounded(quantity * Decimal(unit or 0))
        found.append(Charge(quantity, unit, amount, f"Tier {number} at {plain(Decimal(unit or 0))} per unit"))
    if flat is not None:
        found.append(Charge(Decimal(1), flat, rounded(Decimal(flat)), f"Tier {number} flat fee"))
    return found
