"""Whose customers are whose, decided without asking anybody."""

from __future__ import annotations

import pytest

from sidecar.billing.objects import StripeObject
from sidecar.billing.subscriptions.importing import Adopted, Claim, MappingInvalid, decide, mapping_of, plan_of


def actions(found: list[Adopted]) -> dict[str, tuple[str, str]]:
    return {one.customer: (one.action, one.tenant) for one in found}


def test_metadata_names_a_tenant_and_a_mapping_where_it_does_not() -> None:
    found = decide([Claim("cus_1", "acme"), Claim("cus_2"), Claim("cus_3")], {"cus_2": "other"}, {})
    assert actions(found) == {"cus_1": ("link", "acme"), "cus_2": ("link", "other"), "cus_3": ("unmapped", "")}
    assert "neither its metadata nor the mapping" in found[2].reason


def test_what_is_linked_stays_and_a_second_run_finds_it_known() -> None:
    linked = {"acme": "cus_1"}
    found = decide([Claim("cus_1", "acme"), Claim("cus_2", "acme")], {}, linked)
    assert actions(found) == {"cus_1": ("known", "acme"), "cus_2": ("conflict", "acme")}
    assert found[1].reason == "'acme' has the customer cus_1"
    # Not even a mapping moves a tenant to another customer.
    assert actions(decide([Claim("cus_2")], {"cus_2": "acme"}, linked)) == {"cus_2": ("conflict", "acme")}


def test_a_customer_of_one_tenant_is_never_given_to_another() -> None:
    found = decide([Claim("cus_1")], {"cus_1": "other"}, {"acme": "cus_1"})
    assert actions(found) == {"cus_1": ("conflict", "acme")}
    assert "it belongs to 'acme' here, and 'other' claims it" in found[0].reason


def test_two_claims_to_a_tenant_are_both_told_until_a_mapping_chooses() -> None:
    claims = [Claim("cus_1", "acme"), Claim("cus_2", "acme")]
    assert actions(decide(claims, {}, {})) == {"cus_1": ("conflict", "acme"), "cus_2": ("conflict", "acme")}
    assert actions(decide(claims, {"cus_2": "acme"}, {})) == {"cus_1": ("conflict", "acme"), "cus_2": ("link", "acme")}
    twice = {"cus_1": "acme", "cus_2": "acme"}
    assert {action for action, _ in actions(decide(claims, twice, {})).values()} == {"conflict"}


def test_a_mapping_that_contradicts_metadata_is_told() -> None:
    found = decide([Claim("cus_1", "acme")], {"cus_1": "other"}, {})
    assert actions(found) == {"cus_1": ("conflict", "other")}
    assert found[0].reason == "its metadata names 'acme', the mapping 'other'; mend one of them"


def test_a_plan_is_that_of_the_prices_unless_they_are_of_several() -> None:
    ours = {"price_1": StripeObject(id="price_1", kind="price", name="base:pro", plan="pro")}

    def on(*prices: dict[str, object]) -> str:
        return plan_of({"items": {"data": [{"price": price} for price in prices]}}, ours)

    assert on({"id": "price_1"}, {"id": "price_2"}) == "pro"
    assert on({"id": "price_2", "metadata": {"plan": "max", "metric": "calls"}}) == "max"
    assert on({"id": "price_1"}, {"id": "price_2", "metadata": {"plan": "max"}}) == ""
    assert on({"id": "price_2", "metadata": {}}) == ""


@pytest.mark.parametrize(
    "text",
    [
        "# old shop\ncus_1,acme\n\nprice_1, pro\nprice_2,pro:calls\n",
        '{"customers": {"cus_1": "acme"}, "prices": {"price_1": "pro", "price_2": "pro:calls"}}',
    ],
)
def test_a_mapping_is_csv_or_json(text: str) -> None:
    found = mapping_of(text, "m")
    assert (found.customers, found.prices) == ({"cus_1": "acme"}, {"price_1": "pro", "price_2": "pro:calls"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cus_1,acme\nacme,cus_1\n", "m:2: 'acme,cus_1' maps nothing"),
        ("cus_1\n", "m:1: 'cus_1' maps nothing; write cus_...,tenant"),
        ("cus_1,\n", "maps nothing"),
        ("cus_1,a\ncus_1,b\n", "m:2: cus_1 is mapped twice"),
        ('{"customer": {}}', "write two objects, customers and prices"),
        ('{"customers": {"cus_1": 5}}', "write two objects"),
    ],
)
def test_a_mapping_that_maps_nothing_names_its_line(text: str, told: str) -> None:
    with pytest.raises(MappingInvalid) as refused:
        mapping_of(text, "m")
    assert told in str(refused.value)
