"""One amount for one usage: by the pricing function, by our projection, and by the invoice of the stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from sidecar.billing import objects
from sidecar.billing.shop.applying import price_params
from sidecar.billing.shop.offer import offer
from sidecar.billing.shop.setup import set_up
from sidecar.billing.stripe_api import StripeApi
from sidecar.billing.subscriptions import projection
from sidecar.billing.subscriptions.mirror import Mirror
from sidecar.catalogue import period
from sidecar.catalogue.amount import AMOUNT_MAX, format_amount, parse_amount
from sidecar.catalogue.load import parse, read
from sidecar.catalogue.model import Catalogue, Limit, Metric, Overage, Plan
from sidecar.catalogue.pricing import Base, minor_places, price
from sidecar.clock import Clock
from sidecar.control import catalogues
from sidecar.control.api import control_app
from sidecar.embedded.stripe.account import Account
from sidecar.embedded.stripe.clock import StandInClock
from sidecar.embedded.stripe.prices import CREATE, make
from sidecar.embedded.stripe.pricing import charges
from sidecar.ledger import tenants
from sidecar.ledger.connection import Ledger
from sidecar.ledger.shard import CounterRow
from sidecar.ledger.transaction import Transaction
from tests.servers.stripe import KEY, Stripe

MANY = """
identity: [{header: x-tenant-id}]
currencies: [jpy, kwd]
metrics: {calls: {reported: true}}
plans:
  pro:
    price: {usd: 9.99, jpy: 1500, kwd: 3.125}
    annual_price: {usd: 99.90, jpy: 15_000, kwd: 31.250}
    limits:
      calls: {included: 10, overage: {price: {usd: 0.015, jpy: 2.5, kwd: 0.0005}}}
"""
FILE = Path(__file__).parents[2] / "sidecar" / "catalogue" / "examples" / "agent_platform.yaml"
CHECK = {"llm_tokens": "1500000", "agent_executions": "5500", "api_calls": "120000", "storage_gb": "105",
    "user_seats": "27"}  # fmt: skip
NOVEMBER_S = 1_793_491_200  # 2026-11-01 00:00 UTC
DAY_S = 86_400
# At what is included, one beyond, a part of the unit size beyond, halves of a cent, and far beyond.
BOUNDS = [
    {},
    {"llm_tokens": "1000000", "agent_executions": "5000", "api_calls": "100000", "storage_gb": "100"},
    {"llm_tokens": "1000001", "agent_executions": "5001", "api_calls": "100001", "user_seats": "26"},
    {"llm_tokens": "1000499"},
    {"llm_tokens": "1000500", "api_calls": "100005"},
    {"llm_tokens": "1001499", "api_calls": "100004"},
    {"llm_tokens": "1001500", "storage_gb": "100.5"},
    {"storage_gb": "100.009"},
    {"storage_gb": "100.011", "llm_tokens": "987654321"},
    CHECK,
]


def catalogue() -> Catalogue:
    return read(FILE)


def units(usage: dict[str, str], wanted: Catalogue) -> dict[str, int]:
    return {metric: parse_amount(amount, wanted.metrics[metric].scale) for metric, amount in usage.items()}


@pytest.fixture
async def ledger(database: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(database, shards=1)
    yield opened
    await opened.close()


@pytest.fixture
def stripe() -> Iterator[Stripe]:
    standin = Stripe()
    standin.start()
    yield standin
    standin.stop()


def billed(wanted: Catalogue, plan: str, usage: dict[str, int], currency: str = "") -> Decimal:
    """What the stand-in takes for a usage by the prices that setup makes, in the major unit."""
    account = Account(StandInClock())
    total = 0
    ids = {("meter", metric): "" for metric in wanted.metrics}
    product = account.add("product", {"active": True})["id"]
    for metric in wanted.metrics:
        meter = account.add("billing.meter", {"status": "active", "event_name": metric})
        ids["meter", metric] = meter["id"]
    annual = objects.base_price(plan, annual=True)
    for item in (item for item in offer(wanted).prices if item.plan == plan and item.name != annual):
        ids["product", item.terms.product] = product
        given = CREATE.read(_form(price_params(item, ids)))
        made = make(account, given)
        if currency and currency != wanted.currency:
            made = {**made, **made["currency_options"][currency]}
        scale = wanted.metrics[item.metric].scale if item.metric else 0
        quantity = Decimal(format_amount(usage.get(item.metric, 0), scale)) if item.metric else Decimal(1)
        total += sum(charge.amount for charge in charges(made, quantity))
    return Decimal(total).scaleb(-minor_places(currency or wanted.currency))


def _form(value: Any) -> Any:
    """Parameters as a form has them: texts, and arrays by number."""
    if isinstance(value, dict):
        return {key: _form(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return {str(number): _form(inside) for number, inside in enumerate(value)}
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_check_of_the_agent_platform_costs_186_50_by_both() -> None:
    usage = units(CHECK, catalogue())
    assert price(catalogue().plans["standard"], usage).total == Decimal("186.50")
    assert billed(catalogue(), "standard", usage) == Decimal("186.50")


@pytest.mark.parametrize("plan", ["free", "standard", "enterprise"])
@pytest.mark.parametrize("usage", BOUNDS, ids=str)
def test_bounds_agree(usage: dict[str, str], plan: str) -> None:
    wanted = units(usage, catalogue())
    assert billed(catalogue(), plan, wanted) == price(catalogue().plans[plan], wanted).total


@given(
    scale=st.integers(0, 6),
    whole=st.integers(0, 10**6),
    places=st.integers(0, 8),
    amount=st.integers(0, 10**8),
    per=st.sampled_from([1, 2, 4, 5, 8, 10, 100, 1_000, 10**6]),
    currency=st.sampled_from(["usd", "jpy", "kwd"]),
    data=st.data(),
)
def test_any_tiers_and_amounts_agree(
    scale: int, whole: int, places: int, amount: int, per: int, currency: str, data: st.DataObject
) -> None:
    included = whole * 10**scale
    near = st.integers(max(0, included - 10), included + 10 * per)
    used = data.draw(st.one_of(near, st.integers(0, min(AMOUNT_MAX, 10**15))))
    overage = Overage(price=Decimal(amount).scaleb(-places), per=per * 10**scale)
    limit = Limit(name="m", metric="m", period="billing", included=included, cap="soft", overage=overage)
    plan = Plan(name="p", price=Decimal(7), limits=(limit,))
    wanted = Catalogue(
        metrics={"m": Metric(name="m", scale=scale)}, plans={"p": plan}, routes=(), identity=(), currency=currency
    )
    found = offer(wanted)
    if found.problems:
        assert "decimal places" in found.problems[0]
        return
    assert billed(wanted, "p", {"m": used}) == price(plan, {"m": used}, currency).total


def test_every_currency_agrees() -> None:
    wanted = parse(MANY, "test")
    for currency in ("usd", "jpy", "kwd"):
        for used in (0, 10, 11, 12, 13, 1_000_001):
            expected = price(wanted.plans["pro"], {"calls": used}, currency).total
            assert billed(wanted, "pro", {"calls": used}, currency) == expected


async def put(ledger: Ledger, tenant: str, usage: dict[str, str], hour_s: int = NOVEMBER_S) -> None:
    """A tenant on the standard plan whose periods are months, with usage in one hour."""
    async with ledger.transaction() as tx:
        await catalogues.apply(tx, FILE.read_text("utf-8"), "test", actor="test")
        await tenants.put(tx, tenant, plan="standard", actor="test", anchor_s=NOVEMBER_S)
    async with ledger.shard(0) as shard:
        assert shard is not None
        rows = [
            CounterRow(tenant, metric, "", NOVEMBER_S, hour_s // 3600, "w", amount)
            for metric, amount in units(usage, catalogue()).items()
        ]
        await shard.merge(rows)


async def upcoming(ledger: Ledger, tenant: str, now_s: int) -> projection.Upcoming:
    async with ledger.transaction() as tx:
        return await projection.upcoming(tx, catalogue(), tenant, now_s)


@pytest.mark.parametrize("usage", BOUNDS, ids=str)
async def test_the_projection_is_priced_the_same(ledger: Ledger, usage: dict[str, str]) -> None:
    await put(ledger, "acme", usage)
    found = await upcoming(ledger, "acme", NOVEMBER_S + 10 * DAY_S)
    expected = price(catalogue().plans["standard"], units(usage, catalogue()))
    assert (found.now.base, found.now.total) == (str(expected.base), str(expected.total))
    assert {line.metric: Decimal(line.price) for line in found.now.lines if line.beyond} == expected.overage


async def test_a_forecast_goes_on_as_the_last_week_did(ledger: Ledger) -> None:
    await put(ledger, "acme", {"api_calls": "60000", "llm_tokens": "900000"}, NOVEMBER_S)
    await put(ledger, "acme", {"api_calls": "70001"}, NOVEMBER_S + 9 * DAY_S)
    found = await upcoming(ledger, "acme", NOVEMBER_S + 10 * DAY_S)
    assert (found.period_start, found.period_end) == (NOVEMBER_S, NOVEMBER_S + 30 * DAY_S)
    assert found.forecast is not None
    used = {line.metric: line.used for line in found.forecast.lines}
    # 130,001 so far; 70,001 in the last seven of ten days, so 200,002.86 in the twenty that are left.
    assert (used["api_calls"], used["llm_tokens"]) == (Decimal(330_004), Decimal(900_000))
    assert found.forecast.total == "329.00"


async def test_a_period_that_has_just_begun_has_no_forecast(ledger: Ledger) -> None:
    await put(ledger, "acme", {"api_calls": "5"})
    assert (await upcoming(ledger, "acme", NOVEMBER_S + 600)).forecast is None
    assert (await upcoming(ledger, "acme", NOVEMBER_S + 3_600)).forecast is not None
    december = await upcoming(ledger, "acme", NOVEMBER_S + 30 * DAY_S + 7_200)
    assert (december.now.total, december.period_start) == ("99.00", NOVEMBER_S + 30 * DAY_S)


@given(
    used=st.integers(0, AMOUNT_MAX),
    recent=st.integers(0, AMOUNT_MAX),
    elapsed_s=st.integers(3_600, 7 * DAY_S),
    left_s=st.integers(0, 366 * DAY_S),
)
def test_a_forecast_is_exact(used: int, recent: int, elapsed_s: int, left_s: int) -> None:
    found = projection.forecast(used, recent, elapsed_s, left_s)
    assert 2 * abs((found - used) * elapsed_s - recent * left_s) <= elapsed_s
    assert found >= used


async def test_the_api_answers_with_exact_numbers(ledger: Ledger) -> None:
    await put(ledger, "acme", CHECK)
    token = "admin-token-of-this-test"
    clock = Clock()
    clock.advance(NOVEMBER_S * 1000 - clock.wall_ms() + 5 * DAY_S * 1000)
    async with TestClient(TestServer(control_app(ledger, (token,), clock))) as client:
        headers = {"authorization": f"Bearer {token}"}
        async with client.get("/api/v1/tenants/acme/invoice/upcoming", headers=headers) as answer:
            assert answer.status == 200
            body = await answer.json()
        async with client.get("/api/v1/tenants/nobody/invoice/upcoming", headers=headers) as answer:
            assert answer.status == 404
    assert body["now"]["total"] == "186.50"
    assert body["now"]["base"] == "99.00"
    storage = next(line for line in body["now"]["lines"] if line["metric"] == "storage_gb")
    assert storage == {
        "limit": "storage_gb", "metric": "storage_gb", "used": 105, "included": 100, "beyond": 5, "price": "2.50",
    }  # fmt: skip


async def test_the_invoices_of_the_stand_in_are_the_prices(ledger: Ledger, stripe: Stripe) -> None:
    stripe.options(payment_method_needed=False)
    api = StripeApi.open(KEY, stripe.url)
    customers: list[tuple[str, dict[str, str]]] = []
    try:
        async with ledger.transaction() as tx:
            await set_up(tx, api, catalogue())
            prices = await objects.plan_prices(tx, "standard")
        for usage in BOUNDS:
            customer = (await api.v1.customers.create_async({"description": str(usage)})).id
            items = [{"price": prices.base}, *({"price": one} for one in prices.metered.values())]
            wanted: Any = {"customer": customer, "items": items}
            await api.v1.subscriptions.create_async(wanted)
            for metric, amount in usage.items():
                event: Any = {
                    "event_name": objects.event_name(metric),
                    "payload": {"stripe_customer_id": customer, "value": amount},
                }
                await api.v1.billing.meter_events.create_async(event)
            customers.append((customer, usage))
        stripe.advance("32d")
        for customer, usage in customers:
            found = await api.v1.invoices.list_async({"customer": customer})
            made = [one for one in found.data if one.billing_reason == "subscription_cycle"]
            assert [one.total for one in made] == [
                price(catalogue().plans["standard"], units(usage, catalogue())).total * 100
            ]
    finally:
        await api.close()


async def test_invoices_in_other_currencies_and_by_the_year_agree_with_the_projection(
    ledger: Ledger, stripe: Stripe
) -> None:
    stripe.options(payment_method_needed=False)
    api = StripeApi.open(KEY, stripe.url)
    wanted = parse(MANY, "test")

    async def in_force(_: Transaction) -> Catalogue:
        return wanted

    mirror = Mirror(ledger, api, in_force, Clock())
    try:
        async with ledger.transaction() as tx:
            await set_up(tx, api, wanted)
            prices = await objects.plan_prices(tx, "pro")
        for currency, annual in (("usd", False), ("jpy", False), ("kwd", False), ("jpy", True)):
            tenant = f"{currency}-{annual}"
            async with ledger.transaction() as tx:
                await tenants.put(tx, tenant, plan="pro", actor="test")
            customer = (await api.v1.customers.create_async({"metadata": {"tenant": tenant}})).id
            items = [{"price": prices.annual if annual else prices.base}, {"price": prices.metered["calls"]}]
            params: Any = {"customer": customer, "items": items, "currency": currency}
            subscription = (await api.v1.subscriptions.create_async(params)).id
            await mirror.subscription(subscription)
            event: Any = {"event_name": "quota_calls", "payload": {"stripe_customer_id": customer, "value": "13"}}
            await api.v1.billing.meter_events.create_async(event)
            async with ledger.transaction() as tx:
                row = await tenants.show(tx, tenant)
            now_s = Clock().wall_s()  # not before the subscription began
            start_s, _ = period.bounds("billing", now_s, row.anchor_s)
            async with ledger.shard(0) as shard:
                assert shard is not None
                await shard.merge([CounterRow(tenant, "calls", "", start_s, now_s // 3600, "w", 13)])
            async with ledger.transaction() as tx:
                found = await projection.upcoming(tx, wanted, tenant, now_s)
            # A year that is paid for is on no invoice of its months.
            base: Base = "none" if annual else "interval"
            expected = price(wanted.plans["pro"], {"calls": 13}, currency, base=base).total
            assert (found.currency, found.now.total) == (currency, f"{expected:f}")
            preview: Any = {"customer": customer, "subscription": subscription}
            told = await api.v1.invoices.create_preview_async(preview)
            assert Decimal(told.total).scaleb(-minor_places(currency)) == expected
    finally:
        await api.close()


async def test_late_usage_is_projected_in_the_period_that_bills_it(ledger: Ledger) -> None:
    await put(ledger, "acme", {"api_calls": "100000"})
    december_s = NOVEMBER_S + 30 * DAY_S
    rows = [
        # Of October, on November's invoice; of November, too late for it; of November, in time.
        (NOVEMBER_S - DAY_S * 31, NOVEMBER_S - DAY_S, 1, 500, NOVEMBER_S + 60, True),
        (NOVEMBER_S, NOVEMBER_S, 1, 30, december_s + 60, True),
        (NOVEMBER_S, NOVEMBER_S, 2, 99_970, NOVEMBER_S + 60, False),
    ]
    async with ledger.transaction() as tx:
        await tx._connection.executemany(
            "insert into stripe_outbox (tenant, metric, period, hour, number, amount, at, late, identifier, value,"
            " deadline) values ('acme', 'api_calls', to_timestamp($1::bigint), to_timestamp($2::bigint), $3, $4,"
            " to_timestamp($5::bigint), $6, gen_random_uuid(), 0, now())",
            rows,
        )
    used = {line.metric: line.used for line in (await upcoming(ledger, "acme", NOVEMBER_S + 5 * DAY_S)).now.lines}
    assert used["api_calls"] == 100_000 + 500 - 30
    used = {line.metric: line.used for line in (await upcoming(ledger, "acme", december_s + DAY_S)).now.lines}
    assert used["api_calls"] == 30
