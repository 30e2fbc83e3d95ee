"""Prices are exact, and rounded once a line."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.catalogue.load import read
from sidecar.catalogue.model import Limit, Overage, Plan
from sidecar.catalogue.pricing import minor_places, price

EXAMPLES = Path(__file__).parents[2] / "sidecar" / "catalogue" / "examples"


def plan(overage: Overage, included: int = 0) -> Plan:
    limit = Limit(name="x", metric="x", period="billing", included=included, cap="soft", overage=overage)
    return Plan(name="p", price=Decimal("9.99"), limits=(limit,))


def test_the_standard_plan_of_the_agent_platform_costs_exactly_186_50() -> None:
    standard = read(EXAMPLES / "agent_platform.yaml").plans["standard"]
    invoice = price(
        standard,
        {
            "llm_tokens": 1_500_000,
            "agent_executions": 5_500,
            "api_calls": 120_000,
            "storage_gb": 105_000,  # a scale of 3
            "user_seats": 27,
        },
    )
    assert (str(invoice.base), str(invoice.total)) == ("99.00", "186.50")
    assert {metric: str(cost) for metric, cost in invoice.overage.items()} == {
        "llm_tokens": "5.00",
        "agent_executions": "50.00",
        "api_calls": "20.00",
        "storage_gb": "2.50",
        "user_seats": "10.00",
    }
    assert sum(invoice.overage.values()) == Decimal("87.50")


def test_within_the_included_amounts_only_the_base_is_due() -> None:
    invoice = price(read(EXAMPLES / "agent_platform.yaml").plans["standard"], {"llm_tokens": 1_000_000})
    assert (invoice.overage, str(invoice.total)) == ({}, "99.00")


@pytest.mark.parametrize(
    ("units", "expected"),
    [(499, "0.00"), (500, "0.01"), (1_000, "0.01"), (1_499, "0.01"), (1_500, "0.02")],
)
def test_a_part_of_a_thousand_costs_its_part_and_half_a_cent_goes_up(units: int, expected: str) -> None:
    invoice = price(plan(Overage(price=Decimal("0.01"), per=1_000)), {"x": units})
    assert str(invoice.lines[0].price) == expected


def test_yen_have_no_minor_unit() -> None:
    invoice = price(Plan(name="p", price=Decimal(500)), {}, "jpy")
    assert (str(invoice.total), minor_places("kwd"), minor_places("eur")) == ("500", 3, 2)


def test_a_plan_has_its_own_prices_in_other_currencies_and_by_the_year() -> None:
    overage = Overage(price=Decimal("0.01"), per=1, prices={"jpy": Decimal("1.5")})
    pro = Plan(
        name="p",
        price=Decimal(99),
        prices={"jpy": Decimal(14_000)},
        annual_price=Decimal(990),
        annual_prices={"jpy": Decimal(140_000)},
        limits=plan(overage).limits,
    )
    assert [str(price(pro, {"x": 3}, currency).total) for currency in ("usd", "jpy")] == ["99.03", "14005"]
    assert str(price(pro, {"x": 3}, "jpy", base="annual").total) == "140005"
    assert str(price(pro, {"x": 3}, base="none").total) == "0.03"
    assert str(price(plan(overage), {}, base="annual").total) == "9.99"


@given(
    units=st.integers(min_value=0, max_value=2**53 - 1),
    included=st.integers(min_value=0, max_value=2**53 - 1),
    mills=st.integers(min_value=0, max_value=10**9),
    per=st.sampled_from([1, 3, 1_000, 10**6]),
)
def test_prices_agree_with_fractions(units: int, included: int, mills: int, per: int) -> None:
    line = price(plan(Overage(price=Decimal(mills).scaleb(-6), per=per), included), {"x": units}).lines[0]
    exact = max(0, units - included) * Fraction(mills, 10**6) / per * 100
    rounded = (2 * exact.numerator + exact.denominator) // (2 * exact.denominator)  # half up
    assert line.price * 100 == rounded
