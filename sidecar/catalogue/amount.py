"""Amounts: exact decimals outside, integers of the metric's base unit inside.

Guarantees: conversion is exact in both directions; more decimal places than the metric's scale are an error, never a
            rounding. No float is taken.
Gives up:   amounts above 2**53 - 1 base units. Redis' Lua numbers are doubles, which are exact up to there only, and
            a metric that needs more is better off with a larger base unit.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal

from sidecar.errors import SidecarError

AMOUNT_MAX = 2**53 - 1
SCALE_MAX = 9
_NUMBER = re.compile(r"-?[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?")
_DIGITS_MAX = 40
_EXACT = Context(prec=4 * _DIGITS_MAX)  # the default context would round what is longer than 28 digits


class AmountInvalid(SidecarError, ValueError):
    """The number is no amount of this metric; send an exact decimal within its scale."""


def parse_amount(number: str | int | Decimal, scale: int) -> int:
    """Base units of a decimal. Raises AmountInvalid, which says what would be right."""
    exact = parse_decimal(number)
    if exact < 0:
        raise AmountInvalid(f"{number} is negative; an amount is 0 or more")
    units = exact.scaleb(scale, _EXACT)
    whole = int(units)
    if units != whole:
        places = "no decimal places" if scale == 0 else f"at most {scale} decimal places"
        raise AmountInvalid(f"{number} has too many digits; the metric has {places}")
    if whole > AMOUNT_MAX:
        raise AmountInvalid(f"{number} is too large; at most {format_amount(AMOUNT_MAX, scale)}")
    return whole


def parse_decimal(number: str | int | Decimal) -> Decimal:
    """An exact decimal of text, an integer or a Decimal; floats, exponents in text and infinities are refused."""
    if isinstance(number, str):
        if len(number) > _DIGITS_MAX or not _NUMBER.fullmatch(number):
            raise AmountInvalid(f'"{number[:_DIGITS_MAX]}" is no plain decimal number; write it like 1000, 1_000, 2.5')
        return Decimal(number.replace("_", ""))
    if isinstance(number, bool) or not isinstance(number, int | Decimal):
        raise AmountInvalid(f'{number!r} is not exact; write it as text, like "2.5"')
    if isinstance(number, int):
        if abs(number) >= 10**_DIGITS_MAX:
            raise AmountInvalid("the number is too large for an amount")
        return Decimal(number)
    if not number.is_finite() or abs(number.adjusted()) > _DIGITS_MAX:
        raise AmountInvalid(f"{number} is no amount; write it like 1000 or 2.5")
    return number


def to_decimal(units: int, scale: int) -> Decimal:
    """The decimal of an amount in base units, without needless digits."""
    return Decimal(format_amount(units, scale))


def format_amount(units: int, scale: int) -> str:
    """The shortest plain decimal text of an amount in base units; also of a negative difference."""
    sign = "-" if units < 0 else ""
    digits = str(abs(units))
    if scale == 0:
        return sign + digits
    digits = digits.rjust(scale + 1, "0")
    fraction = digits[-scale:].rstrip("0")
    return sign + digits[:-scale] + ("." + fraction if fraction else "")
