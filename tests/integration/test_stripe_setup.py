"""Meters, products and prices of a catalogue at the stand-in, their ids in the ledger, and what a second setup does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sidecar.billing import objects
from sidecar.billing.shop.setup import Report, difference, set_up
from sidecar.billing.stripe_api import StripeApi
from sidecar.catalogue.load import parse
from sidecar.catalogue.model import Catalogue
from sidecar.errors import Conflict, NotFound, StripeUnavailable
from sidecar.ledger.connection import Ledger
from tests.servers.stripe import KEY, Stripe

AGENT_PLATFORM = (Path(__file__).parents[2] / "sidecar" / "catalogue" / "examples" / "agent_platform.yaml").read_text(
    "utf-8"
)
MANY = """
identity: [{header: x-tenant-id}]
currencies: [jpy]
tax: {behavior: exclusive, automatic: true, code: txcd_10103001}
metrics: {calls: {reported: true, unit: calls}, tiny: {reported: true}}
plans:
  free: {limits: {calls: 10}}
  pro:
    price: {usd: 99, jpy: 14_000}
    annual_price: {usd: 990, jpy: 140_000}
    limits:
      calls: {included: 1_000, overage: {price: {usd: 0.01, jpy: 1}, per: 1_000}}
      tiny: {included: 0, overage: {price: {usd: 0.01, jpy: 1}, per: 10_000_000}}
"""


@pytest.fixture
def stripe() -> Iterator[Stripe]:
    standin = Stripe()
    standin.start()
    yield standin
    standin.stop()


@pytest.fixture
async def api(stripe: Stripe) -> AsyncIterator[StripeApi]:
    opened = StripeApi.open(KEY, stripe.url)
    yield opened
    await opened.close()


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(database, shards=1)
    yield opened
    await opened.close()


def catalogue(text: str = AGENT_PLATFORM) -> Catalogue:
    return parse(text, "test")


async def setup(ledger: Ledger, api: StripeApi, wanted: Catalogue) -> Report:
    async with ledger.transaction() as tx:
        return await set_up(tx, api, wanted, pause_s=0.01)


def parts(stripe: Stripe) -> dict[str, Any]:
    return stripe.state("meters", "products", "prices")


async def test_a_second_setup_has_no_effect(ledger: Ledger, api: StripeApi, stripe: Stripe) -> None:
    first = await setup(ledger, api, catalogue())
    made = parts(stripe)
    assert [len(made[part]) for part in ("meters", "products", "prices")] == [5, 7, 17]
    assert {meter["event_name"] for meter in made["meters"]} == {f"quota_{metric}" for metric in catalogue().metrics}
    per_product = [price["product"] for price in made["prices"]]
    assert sorted(per_product.count(product["id"]) for product in made["products"]) == [1, 1, 3, 3, 3, 3, 3]
    second = await setup(ledger, api, catalogue())
    assert (second.effects, second.ids) == ([], first.ids)
    assert parts(stripe) == made


async def test_the_amounts_at_stripe_are_those_of_the_catalogue(ledger: Ledger, api: StripeApi, stripe: Stripe) -> None:
    await setup(ledger, api, catalogue())
    prices = {price["lookup_key"]: price for price in parts(stripe)["prices"]}
    tokens = prices["quota:usage:standard:llm_tokens"]
    assert [(tier["up_to"], tier["unit_amount_decimal"]) for tier in tokens["tiers"]] == [
        (1_000_000, "0"),
        (None, "0.001"),
    ]
    assert (tokens["recurring"]["usage_type"], tokens["tiers_mode"]) == ("metered", "graduated")
    assert prices["quota:base:standard"]["unit_amount_decimal"] == "9900"
    assert prices["quota:base:standard"]["recurring"]["usage_type"] == "licensed"
    assert prices["quota:usage:enterprise:user_seats"]["unit_amount_decimal"] == "0"


async def test_the_ids_are_in_the_ledger(ledger: Ledger, api: StripeApi, stripe: Stripe) -> None:
    async with ledger.transaction() as tx:
        with pytest.raises(NotFound, match="sidecar stripe setup"):
            await objects.meter_event_name(tx, "api_calls")
        with pytest.raises(NotFound, match="sidecar stripe setup"):
            await objects.plan_prices(tx, "standard")
    await setup(ledger, api, catalogue())
    there = {price["lookup_key"]: price["id"] for price in parts(stripe)["prices"]}
    async with ledger.transaction() as tx:
        assert await objects.meter_event_name(tx, "api_calls") == "quota_api_calls"
        standard = await objects.plan_prices(tx, "standard")
        assert standard.base == there["quota:base:standard"]
        assert standard.annual == ""
        assert standard.metered == {metric: there[f"quota:usage:standard:{metric}"] for metric in catalogue().metrics}
        assert (await objects.plan_prices(tx, "free")).base == ""
        owner = (await objects.by_ids(tx, [standard.base, "price_else"]))[standard.base]
        assert (owner.plan, owner.metric, owner.interval_months) == ("standard", "", 1)
        assert len(await objects.objects(tx)) == 5 + 7 + 17


async def test_a_changed_price_is_a_new_one_and_the_old_one_is_archived(
    ledger: Ledger, api: StripeApi, stripe: Stripe
) -> None:
    before = await setup(ledger, api, catalogue())
    changed = catalogue(AGENT_PLATFORM.replace("price: 99", "price: 109"))
    report = await setup(ledger, api, changed)
    assert [(change.action, change.name) for change in report.effects] == [
        ("replace", "base:standard"),
        ("archive", "base:standard"),
    ]
    prices = {price["id"]: price for price in parts(stripe)["prices"]}
    old, new = prices[before.ids["price"]["base:standard"]], prices[report.ids["price"]["base:standard"]]
    assert (old["active"], old["lookup_key"], old["unit_amount"]) == (False, None, 9_900)
    assert (new["active"], new["lookup_key"], new["unit_amount"]) == (True, "quota:base:standard", 10_900)
    async with ledger.transaction() as tx:
        assert (await objects.plan_prices(tx, "standard")).base == new["id"]
        # Whoever is subscribed to the old one is still known by it.
        both = await objects.by_ids(tx, [old["id"], new["id"]])
        assert {id_: (item.plan, item.current) for id_, item in both.items()} == {
            old["id"]: ("standard", False),
            new["id"]: ("standard", True),
        }
    assert (await setup(ledger, api, changed)).effects == []


async def test_what_the_catalogue_drops_is_for_old_subscriptions_only(
    ledger: Ledger, api: StripeApi, stripe: Stripe
) -> None:
    before = await setup(ledger, api, catalogue(MANY))
    fewer = MANY.replace("price: {usd: 99, jpy: 14_000}", "price: 0").replace("tiny: {included: 0,", "#")
    fewer = fewer.replace("annual_price: {usd: 990, jpy: 140_000}\n", "\n")
    report = await setup(ledger, api, catalogue(fewer))
    assert {(change.action, change.name) for change in report.changes if change.action != "keep"} == {
        ("unused", name)
        for name in (
            "tiny",
            "metric:tiny",
            "plan:pro",
            "base:pro",
            "base:pro:annual",
            "usage:free:tiny",
            "usage:pro:tiny",
        )
    }
    async with ledger.transaction() as tx:
        prices = await objects.plan_prices(tx, "pro")
        assert (prices.base, prices.annual, list(prices.metered)) == ("", "", ["calls"])
        # Who subscribed before is still billed by this meter.
        assert await objects.meter_event_name(tx, "tiny") == "quota_tiny"
        assert (await objects.by_ids(tx, [before.ids["price"]["base:pro"]])) != {}
    again = await setup(ledger, api, catalogue(MANY))
    assert (again.effects, again.ids) == ([], before.ids)
    async with ledger.transaction() as tx:
        assert (await objects.plan_prices(tx, "pro")).base == before.ids["price"]["base:pro"]


async def test_back_and_forth_within_a_day_never_brings_an_archived_price_back(
    ledger: Ledger, api: StripeApi, stripe: Stripe
) -> None:
    changed = catalogue(AGENT_PLATFORM.replace("price: 99", "price: 109"))
    for wanted, amount in ((catalogue(), 9_900), (changed, 10_900), (catalogue(), 9_900), (changed, 10_900)):
        await setup(ledger, api, wanted)
        active = [
            price["unit_amount"]
            for price in parts(stripe)["prices"]
            if price["lookup_key"] == "quota:base:standard" and price["active"]
        ]
        assert active == [amount]


async def test_names_change_in_place(ledger: Ledger, api: StripeApi, stripe: Stripe) -> None:
    before = await setup(ledger, api, catalogue())
    renamed = catalogue(AGENT_PLATFORM.replace("title: API calls", "title: Requests"))
    report = await setup(ledger, api, renamed)
    assert report.ids == before.ids
    assert {change.action for change in report.effects} == {"update"}
    made = parts(stripe)
    meter = next(meter for meter in made["meters"] if meter["event_name"] == "quota_api_calls")
    assert meter["display_name"] == "Requests"
    assert "Requests" in {product["name"] for product in made["products"]}
    assert (await setup(ledger, api, renamed)).effects == []


async def test_what_cannot_be_changed_is_refused_with_its_reason_and_nothing_is_done(
    ledger: Ledger, api: StripeApi, stripe: Stripe
) -> None:
    made = await api.v1.billing.meters.create_async(
        {
            "display_name": "Calls",
            "event_name": "quota_api_calls",
            "default_aggregation": {"formula": "count"},
        }
    )
    with pytest.raises(Conflict, match=f"meter api_calls: {made.id} at Stripe takes events .* by the formula count"):
        await setup(ledger, api, catalogue())
    assert {part: len(found) for part, found in parts(stripe).items()} == {"meters": 1, "products": 0, "prices": 0}
    await api.v1.billing.meters.deactivate_async(made.id)
    await setup(ledger, api, catalogue())
    assert [meter["status"] for meter in parts(stripe)["meters"]].count("active") == 5


async def test_a_dry_run_tells_everything_and_does_nothing(ledger: Ledger, api: StripeApi, stripe: Stripe) -> None:
    async with ledger.transaction() as tx:
        report = await difference(tx, api, catalogue())
    assert (len(report.effects), report.ids["meter"]) == (29, {})
    assert parts(stripe) == {"meters": [], "products": [], "prices": []}
    await setup(ledger, api, catalogue())
    made = parts(stripe)
    async with ledger.transaction() as tx:
        report = await difference(tx, api, catalogue(AGENT_PLATFORM.replace("price: 0.01,", "price: 0.02,")))
    assert [change.reasons for change in report.effects] == [
        ("price in usd 0 up to 1000000, 0.001 -> 0 up to 1000000, 0.002",),
        ("it is replaced",),
    ]
    assert parts(stripe) == made


async def test_currencies_taxes_annual_prices_and_tiny_amounts_reach_stripe_exactly(
    ledger: Ledger, api: StripeApi, stripe: Stripe
) -> None:
    await setup(ledger, api, catalogue(MANY))
    made = parts(stripe)
    assert {product["tax_code"] for product in made["products"]} == {"txcd_10103001"}
    assert {price["tax_behavior"] for price in made["prices"]} == {"exclusive"}
    prices = {price["lookup_key"]: price for price in made["prices"]}
    annual = prices["quota:base:pro:annual"]
    assert (annual["recurring"]["interval"], annual["unit_amount"]) == ("year", 99_000)
    tiny = prices["quota:usage:pro:tiny"]
    assert tiny["unit_amount_decimal"] == "0.0000001"
    found = await api.v1.prices.retrieve_async(prices["quota:usage:pro:calls"]["id"], {"expand": ["currency_options"]})
    yen = found.to_dict()["currency_options"]["jpy"]
    assert [str(tier["unit_amount_decimal"]) for tier in yen["tiers"]] == ["0", "0.001"]
    assert (await setup(ledger, api, catalogue(MANY))).effects == []


async def test_an_account_that_was_set_up_before_is_recognized_by_a_new_ledger(
    ledger: Ledger, api: StripeApi, stripe: Stripe
) -> None:
    first = await setup(ledger, api, catalogue())
    async with ledger.transaction() as tx:
        await tx._connection.execute("delete from stripe_objects")
    again = await setup(ledger, api, catalogue())
    assert (again.effects, again.ids) == ([], first.ids)
    async with ledger.transaction() as tx:
        assert len(await objects.objects(tx)) == 29


@pytest.mark.parametrize("kind", ["error_after", "cut_after", "error_before", "cut_before", "rate_limited"])
async def test_a_setup_that_was_cut_off_is_finished_by_the_next(
    ledger: Ledger, api: StripeApi, stripe: Stripe, kind: str
) -> None:
    stripe.faults({"kind": kind, "path": "/v1/*", "method": "POST", "share": 0.5, "seed": 3})
    for _ in range(3):
        with suppress(StripeUnavailable):
            await setup(ledger, api, catalogue())
    assert stripe.control("GET", "/_faults")[0]["hits"] > 5
    stripe.faults()
    await setup(ledger, api, catalogue())
    made = parts(stripe)
    assert [len(made[part]) for part in ("meters", "products", "prices")] == [5, 7, 17]
    assert (await setup(ledger, api, catalogue())).effects == []


async def test_two_setups_at_once_take_turns(ledger: Ledger, api: StripeApi) -> None:
    async with ledger.transaction() as tx:
        assert await tx.value("lock_stripe_setup")
        with pytest.raises(Conflict, match="another"):
            await setup(ledger, api, catalogue())


def test_the_command_prints_the_ids_and_then_nothing_to_do(database: str, stripe: Stripe, tmp_path: Path) -> None:
    file = tmp_path / "catalogue.yaml"
    file.write_text(AGENT_PLATFORM)
    assert command(database, stripe, "catalogue", "apply", str(file)).returncode == 0
    told = command(database, stripe, "stripe", "setup", "--dry-run")
    assert told.returncode == 0, told.stderr
    assert "+ create meter llm_tokens" in told.stdout
    assert "29 would change, 0 as they should be" in told.stdout
    made = command(database, stripe, "stripe", "setup", "--json")
    assert made.returncode == 0, made.stderr
    shown = json.loads(made.stdout)
    assert {kind: len(ids) for kind, ids in shown["objects"].items()} == {"meter": 5, "product": 7, "price": 17}
    assert {change["action"] for change in shown["changes"]} == {"create"}
    again = command(database, stripe, "stripe", "setup")
    assert again.stdout == "0 changed, 29 as they should be\n"
    assert KEY not in told.stdout + told.stderr + made.stdout + made.stderr


def command(database: str, stripe: Stripe, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")} | {
        "SIDECAR_POSTGRES_DSN": database,
        "SIDECAR_STRIPE_KEY": KEY,
        "SIDECAR_STRIPE_URL": stripe.url,
    }
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments], env=environment, capture_output=True, text=True, timeout=40,
        check=False,
    )  # fmt: skip
