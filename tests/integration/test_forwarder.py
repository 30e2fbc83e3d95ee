"""From the ledger to Stripe: every delta arrives exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import pytest

from tests.servers.forwarding import DAY_S, HOUR_S, Forwarding, forwarding
from tests.servers.stripe import Stripe


@pytest.fixture
def stripe() -> Iterator[Stripe]:
    with Stripe() as running:
        yield running


@pytest.fixture
async def place(database: str, stripe: Stripe) -> AsyncIterator[Forwarding]:
    async with forwarding(database, stripe) as opened:
        yield opened


async def test_what_is_counted_arrives_at_stripe(place: Forwarding) -> None:
    await place.tenants(["a", "b"])
    await place.count("a", 7)
    await place.count("a", 1_500, "llm_tokens")
    await place.count("b", 3)
    forwarder = place.forwarder()
    await forwarder.flush()
    assert place.at_stripe() == {
        ("a", "api_calls"): 7,
        ("a", "llm_tokens"): Decimal("1.5"),
        ("b", "api_calls"): 3,
    }
    assert await place.states() == {"delivered": 3}
    await forwarder.flush()
    await place.count("a", 5)
    await forwarder.flush()
    assert [row["number"] for row in await place.rows()] == [1, 2, 1, 1]
    await place.agree()


async def test_an_answer_that_was_lost_is_not_sent_twice(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    place.stripe.faults({"kind": "cut_after", "count": 1}, {"kind": "error_after", "count": 1})
    forwarder = place.forwarder()
    for _ in range(3):
        await forwarder.flush()
        await place.advance(300)
    await forwarder.flush()
    assert await place.states() == {"delivered": 1}
    assert (await place.rows())[0]["tries"] == 2
    await place.agree()


async def test_an_error_that_stripe_keeps_does_not_hold_a_row_for_a_day(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    place.stripe.faults({"kind": "error_after", "count": 1, "path": "/v1/billing/meter_events"})
    forwarder = place.forwarder()
    await forwarder.flush()
    assert await place.states() == {"waiting": 1}
    await place.advance(5)
    await forwarder.flush()
    assert await place.states() == {"delivered": 1}
    await place.agree()


async def test_usage_after_the_period_closed_is_billed_once_in_the_next(place: Forwarding) -> None:
    start_s = place.now_s // HOUR_S * HOUR_S
    await place.tenants(["a"], anchor_s=start_s)
    await place.count("a", 7)
    forwarder = place.forwarder()
    await forwarder.flush()
    row = (await place.rows())[0]
    ends_s = int(row["deadline"].timestamp()) - HOUR_S
    await place.to(ends_s - 600)
    await place.count("a", 2)
    await place.to(ends_s + 1_800)
    await forwarder.flush()
    await place.to(ends_s + 50 * HOUR_S)
    await place.count("a", 4, hour_s=ends_s - 3 * HOUR_S)
    await forwarder.flush()
    rows = await place.rows()
    assert [(row["amount"], row["late"], row["at"].timestamp() >= ends_s) for row in rows] == [
        (7, False, False),
        (4, True, True),
        (2, False, False),
    ]
    await place.agree()
    assert place.refusals() == []


async def test_an_answer_that_never_came_is_settled_by_the_summaries(place: Forwarding) -> None:
    await place.tenants(["arrived", "lost"])
    await place.count("arrived", 7)
    place.stripe.faults({"kind": "cut_after", "count": 1})
    forwarder = place.forwarder()
    await forwarder.flush()
    place.stripe.faults()
    place.stripe.faults({"kind": "cut_before", "count": 1})
    await place.count("lost", 9)
    await forwarder.flush()
    place.stripe.faults()
    assert place.at_stripe() == {("arrived", "api_calls"): 7}
    await place.advance(30 * HOUR_S)
    for _ in range(3):
        await forwarder.flush()
        await forwarder.pump()
    assert await place.states() == {"delivered": 2}
    await place.agree()
    rows = {row["tenant"]: row for row in await place.rows()}
    assert (rows["arrived"]["attempt"], rows["lost"]["attempt"]) == (1, 2)


async def test_two_forwarders_share_the_work(place: Forwarding) -> None:
    names = [f"t{n}" for n in range(200)]
    await place.tenants(names)
    await place.count_all([(name, metric, 5) for name in names for metric in ("api_calls", "llm_tokens")])
    one, two = place.forwarder(), place.forwarder()
    await one.decide()
    await asyncio.gather(one.pump(), two.pump())
    assert await place.states() == {"delivered": 400}
    assert all(forwarder.counters.events["delivered"] for forwarder in (one, two))
    assert place.refusals() == []
    assert not any(forwarder.counters.events["busy"] for forwarder in (one, two))
    await place.agree()


async def test_the_bulk_path_delivers_the_same(place: Forwarding) -> None:
    names = [f"t{n}" for n in range(120)]
    await place.tenants(names)
    await place.count_all([(name, "llm_tokens", 1_234) for name in names])
    forwarder = place.forwarder(bulk=True)
    await forwarder.flush()
    await place.count_all([(name, "llm_tokens", 1) for name in names[:50]])
    place.stripe.faults({"kind": "cut_after", "count": 1, "path": "/v2/billing/meter_event_stream"})
    await forwarder.flush()
    await place.advance(60)
    await forwarder.flush()
    assert await place.states() == {"delivered": 170}
    await place.agree()


async def test_a_ledger_restored_from_a_backup_takes_over_what_stripe_has(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    forwarder = place.forwarder()
    await forwarder.flush()
    # Back to before the row was written: the same window, with more in it, would get the same identifier.
    await place.sql("delete from stripe_outbox")
    await place.sql("delete from stripe_lanes")
    await place.count("a", 3)
    await place.sql("update billing_customers set looked = false")
    await forwarder.flush()
    assert place.at_stripe() == {("a", "api_calls"): 7}
    await place.advance(HOUR_S)
    for _ in range(3):
        await forwarder.flush()
    await place.agree()
    assert [(row["amount"], row["adopted"]) for row in await place.rows()] == [(7, True), (3, False)]


async def test_one_tenant_can_be_flushed_by_itself(place: Forwarding) -> None:
    await place.tenants(["a", "b"])
    await place.count("a", 7)
    await place.count("b", 7)
    assert await place.forwarder().flush_tenant("a") == 0
    assert place.at_stripe() == {("a", "api_calls"): 7}


async def test_what_waits_for_a_meter_is_sent_when_it_is_back(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    api = place.api()
    await api.v1.billing.meters.deactivate_async(place.meters["api_calls"])
    forwarder = place.forwarder()
    await forwarder.flush()
    row = (await place.rows())[0]
    assert row["state"] == "waiting"
    assert "Stripe refused" in row["reason"]
    await api.v1.billing.meters.reactivate_async(place.meters["api_calls"])
    await place.advance(DAY_S // 24)
    await forwarder.flush()
    assert await place.states() == {"delivered": 1}
    await place.agree()
