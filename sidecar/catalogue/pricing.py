"""What a plan costs for a usage, exactly: the base price and the overage of each metric.

Guarantees: everything is computed in exact decimals; each invoice line is rounded once, half up, to the currency's
            minor unit, as Stripe rounds ``unit_amount_decimal`` times quantity. A part of a unit costs its part.
Gives up:   taxes, discounts and proration of plan changes: those belong to the payment provider.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal

from msgspec import Struct

from sidecar.catalogue.model import Limit, Plan

_EXACT = Context(prec=60, rounding=ROUND_HALF_UP)
_NO_MINOR = frozenset(
    ("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "ugx", "vnd", "vuv", "xaf", "xof", "xpf")
)
_THREE_PLACES = frozenset(("bhd", "jod", "kwd", "omr", "tnd"))


class Line(Struct, frozen=True):
    """One line of overage: ``units`` beyond ``included`` (base units), and their price in the major unit."""

    limit: str
    metric: str
    used: int
    included: int
    units: int
    price: Decimal


class Invoice(Struct, frozen=True):
    """Prices in the major unit of the currency, with exactly its decimal places."""

    base: Decimal
    lines: tuple[Line, ...]
    total: Decimal

    @property
    def overage(self) -> dict[str, Decimal]:
        """Price of the overage per metric, for those that have one."""
        return {line.metric: line.price for line in self.lines if line.units}


def minor_places(currency: str) -> int:
    """Decimal places of a currency's minor unit, as Stripe counts them."""
    if currency in _NO_MINOR:
        return 0
    return 3 if currency in _THREE_PLACES else 2


def price(plan: Plan, usage: dict[str, int], currency: str = "usd") -> Invoice:
    """Price one period of a plan. ``usage`` is in base units per metric; what is not named was not used."""
    unit = Decimal(1).scaleb(-minor_places(currency))
    lines = tuple(
        _line(limit, usage.get(limit.metric, 0), unit)
        for limit in plan.limits
        if limit.overage and limit.included is not None
    )
    base = plan.price.quantize(unit, context=_EXACT)
    return Invoice(base, lines, sum((line.price for line in lines), base))


def _line(limit: Limit, used: int, unit: Decimal) -> Line:
    included = limit.included or 0
    units = max(0, used - included)
    amount = Decimal(0)
    if limit.overage and units:
        # Multiplied first: the quotient of a price per 3 units has no exact decimal, the product often does.
        amount = _EXACT.divide(_EXACT.multiply(limit.overage.price, Decimal(units)), Decimal(limit.overage.per))
    return Line(limit.name, limit.metric, used, included, units, amount.quantize(unit, context=_EXACT))
