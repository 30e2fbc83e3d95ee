"""Money of a catalogue file: its currencies, prices in each of them, and what is said about taxes."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Literal

from msgspec import Struct

from sidecar.catalogue.model import Tax
from sidecar.catalogue.scalars import money
from sidecar.catalogue.yaml_reader import Reader, Value

TAX_KEYS = ("behavior", "automatic", "code")
TAX_BEHAVIORS: tuple[Literal["unspecified", "exclusive", "inclusive"], ...] = ("unspecified", "exclusive", "inclusive")
CURRENCIES_MAX = 20
_CURRENCY = re.compile(r"[a-z]{3}")
_TAX_CODE = re.compile(r"txcd_[0-9]{8}")


class Currencies(Struct, frozen=True):
    """The catalogue's own currency, in which a plain number is meant, and the others that every price names too."""

    own: str
    others: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every currency, the own one first."""
        return (self.own, *self.others)


def read_currencies(reader: Reader, own: Value | None, others: Value | None) -> Currencies:
    """``currency`` and ``currencies``; what is no currency is noted and left out."""
    first = _currency(reader, own, "usd") if own is not None else "usd"
    found: dict[str, None] = {}
    for value, text in reader.texts(others):
        currency = _currency(reader, value, "", text)
        if currency == first or currency in found:
            reader.problem(value, f"{currency} is named twice", "name each other currency once")
        elif currency:
            found[currency] = None
    if others is not None and len(found) > CURRENCIES_MAX:
        reader.problem(others, f"there are {len(found)} currencies", f"at most {CURRENCIES_MAX}")
    return Currencies(first or "usd", tuple(found))


def _currency(reader: Reader, value: Value, default: str, text: str | None = None) -> str:
    currency = (reader.text(value, default) if text is None else text).lower()
    if currency and not _CURRENCY.fullmatch(currency):
        reader.problem(value, f'"{currency[:80]}" is no currency', "three letters, like usd or eur")
        return default
    return currency


def prices(
    reader: Reader, value: Value | None, currencies: Currencies, places: Callable[[str], int]
) -> tuple[Decimal, dict[str, Decimal]]:
    """A price in the catalogue's own currency, and in its others by their names.

    One number will do where there are no other currencies, and for nothing, which is nothing in all of them.
    """
    if value is None or value.scalar is not None:
        price = money(reader, value, places(currencies.own))
        if value is not None and price and currencies.others:
            example = ", ".join(f"{currency}: {price:f}" for currency in currencies.all)
            reader.problem(value, "is in one currency only", f"give it in each, like {{{example}}}")
        return price, dict.fromkeys(currencies.others, price)
    entries = reader.section(value, currencies.all)
    for currency in currencies.all:
        if currency not in entries:
            reader.problem(value, f"the price in {currency} is missing", f'add "{currency}: ..."')
    found = {currency: money(reader, entries.get(currency), places(currency)) for currency in currencies.all}
    price = found.pop(currencies.own)
    for currency, other in found.items():
        if currency in entries and currencies.own in entries and (other == 0) != (price == 0):
            reader.problem(entries[currency], "costs nothing in one currency and something in another", "mend one")
    return price, found


def read_tax(reader: Reader, section: Value | None) -> Tax:
    """What is said about taxes; without it Stripe adds none."""
    keys = reader.section(section, TAX_KEYS)
    code = reader.text(keys.get("code"))
    if code and not _TAX_CODE.fullmatch(code):
        reader.problem(keys["code"], f'"{code[:80]}" is no tax code of Stripe', 'it is written like "txcd_10103001"')
    chosen = reader.choice(keys.get("behavior"), TAX_BEHAVIORS, "unspecified")
    return Tax(
        behavior=next(behavior for behavior in TAX_BEHAVIORS if behavior == chosen),
        automatic=reader.boolean(keys.get("automatic")),
        code=code,
    )
