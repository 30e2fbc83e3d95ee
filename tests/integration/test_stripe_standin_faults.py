"""How the stand-in fails when told to, and what it remembers of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stripe as sdk

from sidecar.billing.stripe_api import StripeApi
from tests.servers.stripe import Stripe
from tests.servers.stripe_shop import make_meter

EVENTS = "/v1/billing/meter_events"


class Teller:
    """Tells usage of one customer on one meter."""

    def __init__(self, api: StripeApi, customer: str) -> None:
        self.api = api
        self.customer = customer

    async def tell(self, identifier: str, value: str = "1", *, customer: str = "", key: str | None = None) -> Any:
        params: Any = {
            "event_name": "used",
            "payload": {"stripe_customer_id": customer or self.customer, "value": value},
            "identifier": identifier,
        }
        return await self.api.v1.billing.meter_events.create_async(params, {"idempotency_key": key or identifier})


@pytest.fixture
async def teller(stripe: Stripe) -> AsyncIterator[Teller]:
    api = StripeApi.open(stripe.key, stripe.url)
    await make_meter(api, "used")
    yield Teller(api, (await api.v1.customers.create_async({})).id)
    await api.close()


def counted(stripe: Stripe, identifier: str) -> int:
    return int(stripe.state("identifiers")["identifiers"].get(identifier, {}).get("accepted", 0))


@pytest.mark.parametrize(
    ("kind", "error", "effect"),
    [
        ("rate_limited", sdk.RateLimitError, 0),
        ("rate_limited_no_reason", sdk.RateLimitError, 0),
        ("error_before", sdk.APIError, 0),
        ("error_after", sdk.APIError, 1),
        ("cut_before", sdk.APIConnectionError, 0),
        ("cut_after", sdk.APIConnectionError, 1),
    ],
)
async def test_each_fault_fails_before_or_after_the_effect(
    stripe: Stripe, teller: Teller, kind: str, error: type[sdk.StripeError], effect: int
) -> None:
    stripe.faults({"kind": kind, "path": EVENTS, "count": 1})
    with pytest.raises(error) as failed:
        await teller.tell("a")
    assert counted(stripe, "a") == effect
    if error is sdk.RateLimitError:
        reason = (failed.value.headers or {}).get("Stripe-Rate-Limited-Reason")
        assert (reason is None) == (kind == "rate_limited_no_reason")
    if kind == "error_after":
        # The stored 500 comes back for a day, whatever happened; a new key hears that the event exists.
        with pytest.raises(sdk.APIError):
            await teller.tell("a")
        with pytest.raises(sdk.InvalidRequestError, match="already exists with identifier a"):
            await teller.tell("a", key="another")
    else:
        await teller.tell("a")
    assert counted(stripe, "a") == 1


async def test_a_slow_call_takes_effect_though_its_caller_went_away(stripe: Stripe, teller: Teller) -> None:
    stripe.faults({"kind": "slow", "seconds": 0.3, "path": EVENTS, "count": 1})
    hasty = StripeApi.open(stripe.key, stripe.url, timeout_s=0.1)
    with pytest.raises(sdk.APIConnectionError):
        await Teller(hasty, teller.customer).tell("a")
    await hasty.close()
    for _ in range(100):
        if counted(stripe, "a"):
            break
        await asyncio.sleep(0.05)
    assert counted(stripe, "a") == 1


async def test_a_share_of_calls_fails_the_same_way_for_the_same_seed(stripe: Stripe, teller: Teller) -> None:
    runs = []
    for run in range(2):
        stripe.faults()
        stripe.faults({"kind": "error_before", "path": EVENTS, "share": 0.3, "seed": 5})
        failed = []
        for number in range(60):
            try:
                await teller.tell(f"{run}-{number}")
            except sdk.APIError:
                failed.append(number)
        runs.append(failed)
    assert runs[0] == runs[1]
    assert 8 <= len(runs[0]) <= 30


async def test_an_idempotency_key_repeats_its_answer_for_a_day(stripe: Stripe, teller: Teller) -> None:
    first = await teller.api.v1.customers.create_async({"name": "x"}, {"idempotency_key": "k"})
    again = await teller.api.v1.customers.create_async({"name": "x"}, {"idempotency_key": "k"})
    assert first.id == again.id
    assert again.last_response is not None
    headers: Any = again.last_response.headers
    assert headers["Idempotent-Replayed"] == "true"
    stripe.advance("24h")
    later = await teller.api.v1.customers.create_async({"name": "x"}, {"idempotency_key": "k"})
    assert later.id != first.id


async def test_what_failed_validation_is_not_remembered(teller: Teller) -> None:
    unknown: Any = {"colour": "red"}
    with pytest.raises(sdk.InvalidRequestError):
        await teller.api.v1.customers.create_async(unknown, {"idempotency_key": "k"})
    await teller.api.v1.customers.create_async({"name": "x"}, {"idempotency_key": "k"})


async def test_a_key_whose_call_still_runs_is_refused(stripe: Stripe, teller: Teller) -> None:
    other = (await teller.api.v1.customers.create_async({})).id
    stripe.options(meter_call_ms=200)
    first = asyncio.create_task(teller.tell("a", key="k"))
    second = asyncio.create_task(teller.tell("b", key="k", customer=other))
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert sum(isinstance(result, sdk.StripeError) for result in results) == 1


async def test_ten_thousand_events_add_up_and_can_be_read_back(stripe: Stripe, teller: Teller) -> None:
    customers = [(await teller.api.v1.customers.create_async({})).id for _ in range(10)]
    session = await teller.api.v2.billing.meter_event_session.create_async()
    bulk = StripeApi.open(session.authentication_token, stripe.url)
    for batch in range(100):
        events: Any = [
            {
                "event_name": "used",
                "identifier": f"{batch}-{number}",
                "payload": {"stripe_customer_id": customers[number % 10], "value": "2"},
            }
            for number in range(100)
        ]
        await bulk.v2.billing.meter_event_stream.create_async({"events": events})
    await bulk.close()
    assert {total["customer"]: total["total"] for total in stripe.totals()} == dict.fromkeys(customers, "2000")
    state = stripe.state()
    assert len(state["meter_events"]) == 10_000
    assert Counter(one["accepted"] for one in state["identifiers"].values()) == {1: 10_000}
    assert sum(int(value) for total in state["totals"] for value in total["minutes"].values()) == 20_000


async def test_a_bad_rule_is_refused(stripe: Stripe) -> None:
    for rule in ({"kind": "fire"}, {"kind": "slow", "share": 2}, {"kind": "slow", "colour": "red"}):
        with pytest.raises(AssertionError, match="error"):
            stripe.faults(rule)
