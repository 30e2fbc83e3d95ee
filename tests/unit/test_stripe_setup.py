"""What Stripe should have of a catalogue, and what is to be done where it has something else."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from msgspec import structs

from sidecar.billing.shop.difference import (
    SETTINGS,
    Account,
    Change,
    FoundMeter,
    FoundPrice,
    FoundProduct,
    changes,
    metadata,
    refused,
)
from sidecar.billing.shop.offer import Offer, Tier, WantedPrice, offer
from sidecar.catalogue.load import parse, read
from sidecar.catalogue.model import Catalogue
from sidecar.cli.stripe_account import DEV_KEY
from sidecar.embedded.stripe.__main__ import DEFAULT_KEY

EXAMPLES = Path(__file__).parents[2] / "sidecar" / "catalogue" / "examples"
TEXT = """
identity: [{header: x-tenant-id}]
currencies: [jpy]
tax: {behavior: exclusive, code: txcd_10103001}
metrics:
  calls: {title: Calls, unit: calls, reported: true}
  storage: {kind: level, scale: 3, unit: a long word for gigabytes}
  unbilled: {reported: true}
plans:
  free: {limits: {calls: 10, unbilled: 5}}
  pro:
    title: Pro
    price: {usd: 99, jpy: 14_000}
    annual_price: {usd: 990, jpy: 140_000}
    interval: 3 months
    limits:
      calls: {included: 1_000, overage: {price: {usd: 0.01, jpy: 1}, per: 1_000}}
      storage: {included: 0, overage: {price: {usd: 0.5, jpy: 75}}}
"""


def catalogue(text: str = TEXT) -> Catalogue:
    return parse(text, "test")


def account(wanted: Offer) -> Account:
    """An account that has exactly what is wanted."""
    return Account(
        meters=tuple(
            FoundMeter(
                id=f"mtr_{meter.metric}", event_name=meter.event_name, title=meter.title, active=True, settings=SETTINGS
            )
            for meter in wanted.meters
        ),
        products=tuple(
            FoundProduct(
                id=f"prod_{number}",
                name=product.name,
                title=product.title,
                active=True,
                unit_label=product.unit_label,
                tax_code=product.tax_code,
                metadata=metadata(product),
            )
            for number, product in enumerate(wanted.products)
        ),
        prices=tuple(found(price) for price in wanted.prices),
    )


def found(price: WantedPrice, id_: str = "") -> FoundPrice:
    return FoundPrice(
        id=id_ or f"price_{price.name}",
        lookup_key=price.lookup_key,
        name=price.name,
        active=True,
        title=price.title,
        tax_behavior=price.tax_behavior,
        terms=price.terms,
        metadata=metadata(price),
    )


def price_of(wanted: Offer, name: str) -> WantedPrice:
    return next(price for price in wanted.prices if price.name == name)


def effects(steps: list[Change]) -> list[tuple[str, str, str]]:
    return [(step.action, step.kind, step.name) for step in steps if step.action != "keep"]


def test_the_agent_platform_has_five_metered_products_of_three_prices_each_and_two_base_prices() -> None:
    wanted = offer(read(EXAMPLES / "agent_platform.yaml"))
    assert [meter.event_name for meter in wanted.meters] == [
        "quota_llm_tokens",
        "quota_agent_executions",
        "quota_api_calls",
        "quota_storage_gb",
        "quota_user_seats",
    ]
    prices = [price.terms.product for price in wanted.prices]
    assert {product: prices.count(product) for product in prices} == {
        "metric:llm_tokens": 3,
        "metric:agent_executions": 3,
        "metric:api_calls": 3,
        "metric:storage_gb": 3,
        "metric:user_seats": 3,
        "plan:standard": 1,
        "plan:enterprise": 1,
    }
    tokens = price_of(wanted, "usage:standard:llm_tokens").terms
    assert tokens.tiers["usd"] == (Tier(1_000_000, Decimal(0)), Tier(None, Decimal("0.001")))
    storage = price_of(wanted, "usage:standard:storage_gb").terms
    assert storage.tiers["usd"] == (Tier(100, Decimal(0)), Tier(None, Decimal(50)))
    unlimited = price_of(wanted, "usage:enterprise:user_seats").terms
    assert unlimited.tiers["usd"] == (Tier(None, Decimal(0)),)
    assert price_of(wanted, "base:standard").terms.tiers["usd"] == (Tier(None, Decimal(9900)),)
    assert not wanted.problems


def test_commands_know_the_key_of_the_stand_in() -> None:
    assert DEV_KEY == DEFAULT_KEY


def test_only_metrics_that_some_plan_bills_reach_stripe() -> None:
    wanted = offer(catalogue())
    assert [meter.metric for meter in wanted.meters] == ["calls", "storage"]
    assert [price.lookup_key for price in wanted.prices] == [
        "quota:usage:free:calls",
        "quota:usage:free:storage",
        "quota:base:pro",
        "quota:base:pro:annual",
        "quota:usage:pro:calls",
        "quota:usage:pro:storage",
    ]


def test_prices_are_in_every_currency_and_in_its_minor_unit() -> None:
    wanted = offer(catalogue())
    calls = price_of(wanted, "usage:pro:calls").terms
    assert {currency: tiers[-1].unit_amount for currency, tiers in calls.tiers.items()} == {
        "usd": Decimal("0.001"),
        "jpy": Decimal("0.001"),
    }
    annual = price_of(wanted, "base:pro:annual").terms
    assert (annual.interval_months, annual.tiers["jpy"][0].unit_amount) == (12, Decimal(140_000))
    assert (calls.currency, calls.interval_months) == ("usd", 3)
    # What is included from the first unit on has no tier that ends at 0.
    assert price_of(wanted, "usage:pro:storage").terms.tiers["usd"] == (Tier(None, Decimal(50)),)


def test_labels_that_stripe_has_no_room_for_are_left_away() -> None:
    products = {product.name: product for product in offer(catalogue()).products}
    assert (products["metric:calls"].unit_label, products["metric:storage"].unit_label) == ("calls", "")
    assert products["plan:pro"].tax_code == "txcd_10103001"


def test_an_included_amount_that_is_no_whole_number_is_refused_with_the_reason() -> None:
    text = TEXT.replace("storage: {included: 0,", "storage: {included: 1.5,")
    steps = changes(offer(catalogue(text)), Account())
    told = (
        "plans.pro.limits.storage: a tier at Stripe ends at a whole number of units; make the included amount a whole "
        "number"
    )
    assert refused(steps) == [told]


def test_an_empty_account_gets_everything_and_then_nothing_more() -> None:
    wanted = offer(catalogue())
    steps = changes(wanted, Account())
    assert {step.action for step in steps} == {"create"}
    assert len(steps) == len(wanted.meters) + len(wanted.products) + len(wanted.prices)
    assert effects(changes(wanted, account(wanted))) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title: Calls", "title: API calls", [("update", "meter", "calls"), ("update", "product", "metric:calls"),
            ("update", "price", "usage:free:calls"), ("update", "price", "usage:pro:calls")]),
        ("code: txcd_10103001", "code: txcd_10000000", [("update", "product", "metric:calls"),
            ("update", "product", "metric:storage"), ("update", "product", "plan:pro")]),
        ("usd: 99, jpy: 14_000", "usd: 89, jpy: 14_000", [("replace", "price", "base:pro"),
            ("archive", "price", "base:pro")]),
        ("usd: 0.5, jpy: 75", "usd: 0.5, jpy: 70", [("replace", "price", "usage:pro:storage"),
            ("archive", "price", "usage:pro:storage")]),
        ("included: 1_000,", "included: 2_000,", [("replace", "price", "usage:pro:calls"),
            ("archive", "price", "usage:pro:calls")]),
    ],
)  # fmt: skip
def test_what_may_change_is_changed_and_new_terms_are_a_new_price(
    old: str, new: str, expected: list[tuple[str, str, str]]
) -> None:
    assert TEXT.count(old) == 1
    before = account(offer(catalogue()))
    assert effects(changes(offer(catalogue(TEXT.replace(old, new))), before)) == expected


def test_the_reasons_say_what_differs() -> None:
    before = account(offer(catalogue()))
    steps = changes(offer(catalogue(TEXT.replace("included: 1_000,", "included: 2_000,"))), before)
    replaced = next(step for step in steps if step.action == "replace")
    assert replaced.reasons == (
        "price in usd 0 up to 1000, 0.001 -> 0 up to 2000, 0.001",
        "price in jpy 0 up to 1000, 0.001 -> 0 up to 2000, 0.001",
    )


def test_a_replacement_that_was_cut_short_is_finished() -> None:
    wanted = offer(catalogue())
    old = structs.replace(found(price_of(wanted, "base:pro"), "price_old"), lookup_key="")
    here = account(wanted)
    steps = changes(wanted, structs.replace(here, prices=(old, *here.prices)))
    assert effects(steps) == [("archive", "price", "base:pro")]
    assert next(step for step in steps if step.action == "archive").id == "price_old"


def test_what_was_archived_comes_back() -> None:
    wanted = offer(catalogue())
    here = account(wanted)
    asleep = Account(
        meters=tuple(structs.replace(meter, active=False) for meter in here.meters),
        products=tuple(structs.replace(product, active=False) for product in here.products),
        prices=tuple(structs.replace(price, active=False) for price in here.prices),
    )
    assert {step.action for step in changes(wanted, asleep)} == {"update"}


def test_a_tax_behavior_may_be_specified_once_and_then_needs_a_new_price() -> None:
    text = TEXT.replace("currencies: [jpy]\n", "").replace("behavior: exclusive, ", "")
    text = text.replace("{usd: 99, jpy: 14_000}", "99").replace("{usd: 990, jpy: 140_000}", "990")
    text = text.replace("{usd: 0.01, jpy: 1}", "0.01").replace("{usd: 0.5, jpy: 75}", "0.5")
    unspecified = account(offer(catalogue(text)))
    inclusive = offer(catalogue(text.replace("tax: {", "tax: {behavior: inclusive, ")))
    exclusive = offer(catalogue(text.replace("tax: {", "tax: {behavior: exclusive, ")))
    assert {step.action for step in changes(inclusive, unspecified) if step.kind == "price"} == {"update"}
    assert {step.action for step in changes(exclusive, account(inclusive)) if step.kind == "price"} == {
        "replace",
        "archive",
    }


def test_a_meter_with_other_settings_is_refused_and_an_inactive_one_is_not_in_the_way() -> None:
    wanted = offer(catalogue())
    here = account(wanted)
    counts = structs.replace(here.meters[0], settings=("count", "stripe_customer_id", "value"))
    told = refused(changes(wanted, structs.replace(here, meters=(counts, *here.meters[1:]))))
    assert len(told) == 1
    assert "mtr_calls at Stripe takes events named quota_calls by the formula count" in told[0]
    assert "deactivate it there, or rename the metric" in told[0]
    asleep = structs.replace(counts, active=False)
    assert effects(changes(wanted, structs.replace(here, meters=(asleep, *here.meters[1:])))) == [
        ("create", "meter", "calls")
    ]


def test_another_currency_is_refused_as_long_as_the_price_is_in_use() -> None:
    euros = TEXT.replace("currencies: [jpy]", "currency: eur\ncurrencies: [jpy]").replace("usd:", "eur:")
    before = account(offer(catalogue()))
    told = refused(changes(offer(catalogue(euros)), before))
    assert len(told) == len(before.prices)
    assert "price base:pro: price_base:pro is in usd, and who has paid in it cannot pay in eur" in "\n".join(told)
    archived = structs.replace(before, prices=tuple(structs.replace(price, active=False) for price in before.prices))
    assert {step.action for step in changes(offer(catalogue(euros)), archived) if step.kind == "price"} == {"replace"}


def test_what_the_catalogue_no_longer_names_is_listed_and_left_alone() -> None:
    before = account(offer(catalogue()))
    text = TEXT.replace("      storage: {included: 0, overage: {price: {usd: 0.5, jpy: 75}}}\n", "")
    assert effects(changes(offer(catalogue(text)), before)) == [
        ("unused", "meter", "storage"),
        ("unused", "product", "metric:storage"),
        ("unused", "price", "usage:free:storage"),
        ("unused", "price", "usage:pro:storage"),
    ]


def test_a_price_of_somebody_else_under_our_key_is_replaced_unless_it_is_the_same() -> None:
    wanted = offer(catalogue())
    here = account(wanted)
    same = structs.replace(here.prices[0], name="", metadata={}, id="price_theirs")
    other = structs.replace(same, terms=structs.replace(same.terms, strange="transform_quantity"))
    assert effects(changes(wanted, structs.replace(here, prices=(same, *here.prices[1:])))) == [
        ("update", "price", "usage:free:calls")
    ]
    assert effects(changes(wanted, structs.replace(here, prices=(other, *here.prices[1:])))) == [
        ("replace", "price", "usage:free:calls"),
        ("archive", "price", "usage:free:calls"),
    ]
