"""What a plan costs for a usage, exactly: the base price and the overage of each metric.

Guarantees: everything is computed in exact decimals; each invoice line is rounded once, half up, to the currency's
            minor unit, as Stripe rounds ``unit_amount_decimal`` times quantity. A part of a unit costs its part.
            Command line, projections and pages all price by this one function; tests hold it against invoices.
Gives up:   taxes, discounts and proration of plan changes: those belong to the payment provider.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Literal

from msgspec import Struct

from sidecar.catalogue.model import Limit, Overage, Plan

_EXACT = Context(prec=60, rounding=ROUND_HALF_UP)
_NO_MINOR = frozenset(
    ("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "ugx", "vnd", "vuv", "xaf", "xof", "xpf")
)
_THREE_PLACES = frozenset(("bhd", "jod", "kwd", "omr", "tnd"))


Base = Literal["interval", "annual", "none"]


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


def price(plan: Plan, usage: dict[str, int], currency: str = "usd", *, base: Base = "interval") -> Invoice:
    """Price one period of a plan. ``usage`` is in base units per metric; what is not named was not used.

    ``base`` says which base price is due: that of the plan's interval, of a whole year, or none in this period.
    """
    unit = Decimal(1).scaleb(-minor_places(currency))
    lines = tuple(
        _line(limit, limit.overage, usage.get(limit.metric, 0), currency)
        for limit in plan.limits
        if limit.overage and limit.included is not None
    )
    due = base_price(plan, currency, base).quantize(unit, context=_EXACT)
    return Invoice(due, lines, sum((line.price for line in lines), due))


def base_price(plan: Plan, currency: str, base: Base = "interval") -> Decimal:
    """A plan's base price in a currency of the catalogue; where the plan has no annual price that of its interval."""
    if base == "none":
        return Decimal(0)
    if base == "annual" and plan.annual_price is not None:
        return plan.annual_prices.get(currency, plan.annual_price)
    return plan.prices.get(currency, plan.price)


def unit_amount(overage: Overage, scale: int, currency: str) -> Decimal:
    """The price of one whole unit beyond the included ones in the currency's minor unit, as Stripe takes it.

    Exact: a catalogue whose price of a unit has more than the 12 decimal places that Stripe takes is refused.
    """
    whole_unit = _EXACT.multiply(overage.prices.get(currency, overage.price), Decimal(10) ** scale)
    return _EXACT.divide(whole_unit.scaleb(minor_places(currency), context=_EXACT), Decimal(overage.per)).normalize(
        context=_EXACT
    )


def _line(limit: Limit, overage: Overage, used: int, currency: str) -> Line:
    included = limit.included or 0
    units = max(0, used - included)
    # Multiplied first: the quotient of a price per 3 units has no exact decimal, the product often does.
    cost = _EXACT.multiply(overage.prices.get(currency, overage.price), Decimal(units))
    amount = _EXACT.divide(cost, Decimal(overage.per))
    unit = Decimal(1).scaleb(-minor_places(currency))
    return Line(limit.name, limit.metric, used, included, units, amount.quantize(unit, context=_EXACT))
