from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.catalogue.amount import AMOUNT_MAX, AmountInvalid, format_amount, parse_amount, to_decimal


@given(units=st.integers(min_value=0, max_value=AMOUNT_MAX), scale=st.integers(min_value=0, max_value=9))
def test_every_amount_comes_back_exactly(units: int, scale: int) -> None:
    text = format_amount(units, scale)
    assert parse_amount(text, scale) == units
    assert parse_amount(Decimal(text), scale) == units
    assert to_decimal(units, scale) == Decimal(units).scaleb(-scale)


@pytest.mark.parametrize(
    ("number", "scale", "units"),
    [
        (0, 0, 0),
        (1_000, 0, 1_000),
        ("1_000", 0, 1_000),
        ("2.5", 1, 25),
        ("2.50", 1, 25),
        ("0.000001", 6, 1),
        (Decimal("1E+3"), 2, 100_000),
        ("9007199254740991", 0, AMOUNT_MAX),
    ],
)
def test_decimals_become_base_units(number: str | int | Decimal, scale: int, units: int) -> None:
    assert parse_amount(number, scale) == units


@pytest.mark.parametrize(
    ("number", "scale", "says"),
    [
        (-1, 0, "negative"),
        ("-0.5", 1, "negative"),
        ("1.5", 0, "too many digits"),
        ("0.001", 2, "at most 2 decimal places"),
        ("1.0000000000000000000000000000000001", 2, "too many digits"),
        ("9007199254740992", 0, "at most 9007199254740991"),
        ("90071992547409.92", 2, "at most 90071992547409.91"),
        pytest.param(10**5000, 0, "too large", id="huge"),
        ("1" * 41, 0, "no plain decimal"),
        ("1e3", 0, "no plain decimal"),
        ("1,000", 0, "no plain decimal"),
        ("\u0661", 0, "no plain decimal"),
        (" 1", 0, "no plain decimal"),
        ("", 0, "no plain decimal"),
        (".5", 1, "no plain decimal"),
        (0.5, 1, "not exact"),
        (True, 0, "not exact"),
        (None, 0, "not exact"),
        (Decimal("NaN"), 0, "no amount"),
        (Decimal("Infinity"), 0, "no amount"),
        (Decimal("1E+999999"), 0, "no amount"),
    ],
)
def test_what_is_not_exact_is_refused(number: str | int | Decimal, scale: int, says: str) -> None:
    with pytest.raises(AmountInvalid, match=says):
        parse_amount(number, scale)


def test_negative_differences_can_be_shown() -> None:
    assert format_amount(-5, 2) == "-0.05"
    assert format_amount(150, 2) == "1.5"
    assert format_amount(100, 2) == "1"
