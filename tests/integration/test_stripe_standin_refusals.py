"""Calls that the real API must refuse, and that the stand-in therefore refuses."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import stripe as sdk

from sidecar.billing.stripe_api import StripeApi
from tests.servers.stripe import Stripe
from tests.servers.stripe_shop import make_meter

DAY_S = 86_400
VERSION = "2026-10-28.endive"


class Bench:
    """A meter, an archived one and a customer, and the two ways to tell usage."""

    def __init__(self, stripe: Stripe, api: StripeApi) -> None:
        self.stripe = stripe
        self.api = api
        self.now = 0
        self.customer = ""

    async def open(self) -> None:
        self.now = self.stripe.state("now")["now"]
        await make_meter(self.api, "used")
        archived = await make_meter(self.api, "archived")
        await self.api.v1.billing.meters.deactivate_async(archived)
        self.customer = (await self.api.v1.customers.create_async({"metadata": {"tenant": "a"}})).id

    async def use(self, value: Any = "1", options: Any = None, **more: Any) -> Any:
        params: Any = {"event_name": "used", "payload": {"stripe_customer_id": self.customer, "value": value}, **more}
        return await self.api.v1.billing.meter_events.create_async(params, options)

    async def use_v2(self, value: Any = "1", **more: Any) -> Any:
        params: Any = {"event_name": "used", "payload": {"stripe_customer_id": self.customer, "value": value}, **more}
        return await self.api.v2.billing.meter_events.create_async(params)

    async def raw(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """A call that the library would not make."""
        headers = {"Authorization": f"Bearer {self.stripe.key}", "Stripe-Version": VERSION, **more.pop("headers", {})}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.stripe.url + path, headers=headers, **more) as answer,
        ):
            return answer.status, (await answer.json())["error"]


@pytest.fixture
async def bench(stripe: Stripe) -> AsyncIterator[Bench]:
    api = StripeApi.open(stripe.key, stripe.url)
    made = Bench(stripe, api)
    await made.open()
    yield made
    await api.close()


Refusal = tuple[Callable[[Bench], Awaitable[Any]], int, str, str | None, str | None]


async def repeated(bench: Bench) -> None:
    await bench.use(identifier="same")
    await bench.use(identifier="same")


async def repeated_v2(bench: Bench) -> None:
    await bench.use_v2(identifier="same")
    await bench.use_v2(identifier="same")


async def other_parameters(bench: Bench) -> None:
    await bench.use("1", {"idempotency_key": "k"}, identifier="a")
    await bench.use("2", {"idempotency_key": "k"}, identifier="a")


async def changed_amount(bench: Bench) -> None:
    product = await bench.api.v1.products.create_async({"name": "p"})
    price = await bench.api.v1.prices.create_async({"currency": "usd", "product": product.id, "unit_amount": 1})
    params: Any = {"unit_amount": 2}
    await bench.api.v1.prices.update_async(price.id, params)


async def metered_without_meter(bench: Bench) -> None:
    product = await bench.api.v1.products.create_async({"name": "p"})
    recurring: Any = {"interval": "month", "usage_type": "metered"}
    await bench.api.v1.prices.create_async(
        {"currency": "usd", "product": product.id, "unit_amount": 1, "recurring": recurring}
    )


async def tiers_out_of_order(bench: Bench) -> None:
    product = await bench.api.v1.products.create_async({"name": "p"})
    tiers: Any = [{"up_to": 10, "unit_amount": 1}, {"up_to": 5, "unit_amount": 1}, {"up_to": "inf", "unit_amount": 1}]
    await bench.api.v1.prices.create_async(
        {
            "currency": "usd",
            "product": product.id,
            "billing_scheme": "tiered",
            "tiers_mode": "graduated",
            "tiers": tiers,
            "recurring": {"interval": "month"},
        }
    )


async def thirteen_places(bench: Bench) -> None:
    product = await bench.api.v1.products.create_async({"name": "p"})
    amount: Any = "0.0000000000001"
    await bench.api.v1.prices.create_async({"currency": "usd", "product": product.id, "unit_amount_decimal": amount})


async def taken_lookup_key(bench: Bench) -> None:
    product = await bench.api.v1.products.create_async({"name": "p"})
    for _ in range(2):
        await bench.api.v1.prices.create_async(
            {"currency": "usd", "product": product.id, "unit_amount": 1, "lookup_key": "k"}
        )


async def subscribe_without_card(bench: Bench) -> None:
    product = await bench.api.v1.products.create_async({"name": "p"})
    price = await bench.api.v1.prices.create_async(
        {"currency": "usd", "product": product.id, "unit_amount": 1, "recurring": {"interval": "month"}}
    )
    await bench.api.v1.subscriptions.create_async({"customer": bench.customer, "items": [{"price": price.id}]})


async def summaries(bench: Bench, **more: Any) -> None:
    meter = (await bench.api.v1.billing.meters.list_async({"status": "active"})).data[0].id
    start = bench.now - bench.now % DAY_S
    params: Any = {"customer": bench.customer, "start_time": start, "end_time": start + DAY_S, **more}
    await bench.api.v1.billing.meters.event_summaries.list_async(meter, params)


INVALID = "invalid_request_error"
REFUSED: dict[str, Refusal] = {
    "16 digits": (lambda b: b.use("1234567890123456"), 400, INVALID, "meter_event_value_too_many_digits", None),
    "16 digits with a point": (
        lambda b: b.use("123456789012345.6"),
        400,
        INVALID,
        "meter_event_value_too_many_digits",
        "payload[value]",
    ),
    "a float with an exponent": (lambda b: b.use("1e3"), 400, INVALID, "meter_event_invalid_value", "payload[value]"),
    "no number": (lambda b: b.use("many"), 400, INVALID, "meter_event_invalid_value", "payload[value]"),
    "a JSON float": (lambda b: b.use_v2(1.5), 400, INVALID, "invalid_fields", "payload"),
    "a JSON integer": (lambda b: b.use_v2(1), 400, INVALID, "invalid_fields", "payload"),
    "six minutes ahead": (lambda b: b.use(timestamp=b.now + 360), 400, INVALID, "timestamp_in_future", "timestamp"),
    "36 days old": (
        lambda b: b.use(timestamp=b.now - 36 * DAY_S),
        400,
        INVALID,
        "timestamp_too_far_in_past",
        "timestamp",
    ),
    "a fraction of a second": (
        lambda b: b.use(timestamp="1.5"),
        400,
        INVALID,
        "parameter_invalid_integer",
        "timestamp",
    ),
    "a repeated identifier": (repeated, 400, INVALID, None, None),
    "a repeated identifier in v2": (repeated_v2, 400, INVALID, "duplicate_meter_event", None),
    "an identifier of 101 characters": (lambda b: b.use(identifier="x" * 101), 400, INVALID, None, "identifier"),
    "an unknown parameter": (lambda b: b.use(colour="red"), 400, INVALID, "parameter_unknown", "colour"),
    "a missing parameter": (
        lambda b: b.api.v1.billing.meter_events.create_async({"event_name": "used"}),  # type: ignore[typeddict-item]
        400,
        INVALID,
        "parameter_missing",
        "payload",
    ),
    "an archived meter": (lambda b: b.use(event_name="archived"), 400, INVALID, "archived_meter", "event_name"),
    "an unknown meter": (lambda b: b.use(event_name="nobody"), 400, INVALID, "no_meter", "event_name"),
    "an unknown customer": (
        lambda b: b.use(payload={"stripe_customer_id": "cus_nobody", "value": "1"}),
        400,
        INVALID,
        "resource_missing",
        "payload[stripe_customer_id]",
    ),
    "no customer": (
        lambda b: b.use(payload={"value": "1"}),
        400,
        INVALID,
        "meter_event_no_customer_defined",
        "payload[stripe_customer_id]",
    ),
    "no value": (
        lambda b: b.use(payload={"stripe_customer_id": b.customer}),
        400,
        INVALID,
        "meter_event_value_not_found",
        "payload[value]",
    ),
    "a payload that is no object": (lambda b: b.use(payload="x"), 400, INVALID, None, "payload"),
    "an idempotency key with other parameters": (other_parameters, 400, "idempotency_error", None, None),
    "an idempotency key of 256 characters": (
        lambda b: b.use("1", {"idempotency_key": "k" * 256}),
        400,
        "idempotency_error",
        None,
        None,
    ),
    "an object that does not exist": (
        lambda b: b.api.v1.customers.retrieve_async("cus_nobody"),
        404,
        INVALID,
        "resource_missing",
        "id",
    ),
    "a page of 101": (
        lambda b: b.api.v1.customers.list_async({"limit": 101}),
        400,
        INVALID,
        "parameter_invalid_integer",
        "limit",
    ),
    "an amount that changes": (changed_amount, 400, INVALID, "parameter_unknown", "unit_amount"),
    "a metered price without a meter": (metered_without_meter, 400, INVALID, None, "recurring[meter]"),
    "tiers out of order": (tiers_out_of_order, 400, INVALID, None, "tiers[1][up_to]"),
    "13 decimal places": (thirteen_places, 400, INVALID, None, "unit_amount_decimal"),
    "a lookup key that is taken": (taken_lookup_key, 400, INVALID, "resource_already_exists", "lookup_key"),
    "a second meter of one name": (lambda b: make_meter(b.api, "used"), 400, INVALID, None, "event_name"),
    "a word that is none of the choices": (
        lambda b: summaries(b, value_grouping_window="week"),
        400,
        INVALID,
        None,
        "value_grouping_window",
    ),
    "a summary off the minute": (lambda b: summaries(b, start_time=b.now - b.now % 60 - 30), 400, INVALID, None,
                                 "start_time"),
    "a daily summary off the day": (
        lambda b: summaries(b, start_time=b.now - b.now % DAY_S + 3_600, value_grouping_window="day"),
        400,
        INVALID,
        None,
        "start_time",
    ),
    "a subscription nobody can pay": (subscribe_without_card, 400, INVALID, "resource_missing", None),
    "an expansion of nothing": (
        lambda b: b.api.v1.customers.retrieve_async(b.customer, {"expand": ["nothing"]}),
        400,
        INVALID,
        None,
        "expand",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_what_the_real_api_refuses_is_refused(bench: Bench, name: str) -> None:
    call, status, kind, code, param = REFUSED[name]
    before = sum(int(total["events"]) for total in bench.stripe.totals())
    with pytest.raises(sdk.StripeError) as refused:
        await call(bench)
    error = refused.value
    body: Any = error.json_body
    assert (error.http_status, body["error"]["type"], error.code) == (status, kind, code), error.user_message
    if param is not None:
        assert body["error"]["param"] == param
    assert "doc_url" not in body["error"]
    after = sum(int(total["events"]) for total in bench.stripe.totals())
    assert after - before == (1 if "repeated" in name or "other parameters" in name else 0)


async def test_parallel_calls_for_one_customer_and_meter_are_refused(bench: Bench) -> None:
    bench.stripe.options(meter_call_ms=200)
    results = await asyncio.gather(*(bench.use() for _ in range(4)), return_exceptions=True)
    refused = [error for error in results if isinstance(error, sdk.RateLimitError)]
    assert len(refused) == 3
    for error in refused:
        assert (error.headers or {})["Stripe-Rate-Limited-Reason"] == "resource-specific"
    other = (await bench.api.v1.customers.create_async({})).id
    both = [bench.use(), bench.use(payload={"stripe_customer_id": other, "value": "1"})]
    await asyncio.gather(*both)


async def test_more_calls_than_the_rate_are_refused(bench: Bench) -> None:
    bench.stripe.options(meter_calls_per_s=25)
    results = []
    for _ in range(40):
        try:
            await bench.use()
            results.append("")
        except sdk.RateLimitError as error:
            results.append((error.headers or {})["Stripe-Rate-Limited-Reason"])
    assert results[:25] == [""] * 25
    assert "endpoint-rate" in results


async def test_keys_and_versions_are_checked(bench: Bench) -> None:
    for header in ("", "Bearer sk_test_wrong", "Bearer sk_live_0123", "Basic !!!"):
        status, error = await bench.raw("GET", "/v1/customers", headers={"Authorization": header})
        assert (status, error["type"]) == (401, "invalid_request_error")
    basic = "Basic " + base64.b64encode(f"{bench.stripe.key}:".encode()).decode()
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{bench.stripe.url}/v1/customers", headers={"Authorization": basic}) as answer,
    ):
        assert answer.status == 200
        assert answer.headers["Request-Id"].startswith("req_")
        assert answer.headers["Stripe-Version"] == VERSION
    status, _ = await bench.raw("GET", "/v1/customers", headers={"Stripe-Version": "2020-08-27"})
    assert status == 400
    status, _ = await bench.raw("GET", "/v1/usage_records")
    assert status == 404
    status, _ = await bench.raw("POST", "/v1/customers", json={"name": "x"})
    assert status == 400


async def test_whole_values_only_when_the_account_has_no_decimals(bench: Bench) -> None:
    await bench.use("1.5")
    bench.stripe.options(whole_values_only=True)
    with pytest.raises(sdk.InvalidRequestError, match="whole number"):
        await bench.use("1.5")


async def test_refused_events_are_remembered_with_their_reason(bench: Bench) -> None:
    await bench.use(identifier="a")
    with pytest.raises(sdk.InvalidRequestError):
        await bench.use(identifier="a")
    with pytest.raises(sdk.InvalidRequestError):
        await bench.use("x", identifier="b")
    state = bench.stripe.state("refused", "identifiers")
    assert [(one["identifier"], one["code"]) for one in state["refused"]] == [
        ("a", "duplicate_meter_event"),
        ("b", "meter_event_invalid_value"),
    ]
    assert state["identifiers"] == {"a": {"came": 2, "accepted": 1}, "b": {"came": 1, "accepted": 0}}


async def test_an_identifier_is_free_again_after_a_day(bench: Bench) -> None:
    await bench.use(identifier="a")
    bench.stripe.advance("24h")
    await bench.use(identifier="a")
    assert bench.stripe.state("identifiers")["identifiers"]["a"]["accepted"] == 2


async def test_a_cancelled_event_counts_no_more(bench: Bench) -> None:
    await bench.use("5", identifier="a")
    adjust: Any = {"event_name": "used", "type": "cancel", "cancel": {"identifier": "a"}}
    await bench.api.v1.billing.meter_event_adjustments.create_async(adjust)
    assert bench.stripe.totals()[0]["total"] == "0"
    await bench.use("5", identifier="b")
    bench.stripe.advance("25h")
    adjust["cancel"]["identifier"] = "b"
    with pytest.raises(sdk.InvalidRequestError, match="24 hours"):
        await bench.api.v1.billing.meter_event_adjustments.create_async(adjust)


async def test_summaries_come_by_hour_and_day_and_in_pages(bench: Bench) -> None:
    hour = bench.now - bench.now % 3_600
    for number in range(5):
        await bench.use(str(number + 1), timestamp=hour - 3_600 * number - 60)
    meter = (await bench.api.v1.billing.meters.list_async({"status": "active"})).data[0].id
    span: Any = {"customer": bench.customer, "start_time": hour - 10 * 3_600, "end_time": hour}
    whole = await bench.api.v1.billing.meters.event_summaries.list_async(meter, span)
    assert [one.aggregated_value for one in whole.data] == [15.0]
    span |= {"value_grouping_window": "hour", "limit": 2}
    first = await bench.api.v1.billing.meters.event_summaries.list_async(meter, span)
    values = [one.aggregated_value async for one in first.auto_paging_iter()]
    assert values == [1.0, 2.0, 3.0, 4.0, 5.0]


async def test_usage_shows_in_summaries_after_a_while(bench: Bench) -> None:
    bench.stripe.options(visibility_s=60)
    await bench.use("7")
    minute = bench.now - bench.now % 60
    meter = (await bench.api.v1.billing.meters.list_async({"status": "active"})).data[0].id
    span: Any = {"customer": bench.customer, "start_time": minute - 60, "end_time": minute + 3_600}
    shown = []
    for _ in range(2):
        found = await bench.api.v1.billing.meters.event_summaries.list_async(meter, span)
        shown.append(found.data[0].aggregated_value)
        bench.stripe.advance("61s")
    assert shown == [0.0, 7.0]


async def test_lists_come_in_pages_newest_first(bench: Bench) -> None:
    made = [(await bench.api.v1.customers.create_async({"name": str(n)})).id for n in range(5)]
    page = await bench.api.v1.customers.list_async({"limit": 2})
    assert [one.id for one in page.data] == [made[4], made[3]]
    assert page.has_more
    found = [one.id async for one in page.auto_paging_iter()]
    assert found == [*made[::-1], bench.customer]
    hit = await bench.api.v1.customers.search_async({"query": "metadata['tenant']:'a'"})
    assert [one.id for one in hit.data] == [bench.customer]
