"""From the ledger to Stripe: every delta arrives exactly once."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from sidecar.billing.outbox.claim import ForwarderTerms
from sidecar.billing.outbox.counters import BillingCounters
from sidecar.billing.outbox.forwarder import Forwarder
from sidecar.clock import Clock
from sidecar.ledger.distrust import distrust
from tests.servers.forwarding import DAY_S, HOUR_S, Forwarding


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


async def test_usage_that_waits_for_a_comparison_is_told_of_when_a_tenant_is_flushed(place: Forwarding) -> None:
    await place.tenants(["a"])
    forwarder = place.forwarder()
    await place.count("a", 7)
    await forwarder.flush()
    async with place.ledger.transaction() as tx:
        await distrust(tx, tenant="a")
    await place.count("a", 3)
    assert await forwarder.flush_tenant("a") == 1
    await place.advance(HOUR_S)
    assert await forwarder.flush_tenant("a") == 0
    await place.agree()


async def test_usage_of_a_ledger_that_nobody_vouches_for_is_not_all_sent(place: Forwarding) -> None:
    await place.tenants(["a"])
    terms = ForwarderTerms(interval_s=1, close_delay_s=HOUR_S, calls_per_s=900)
    early = Forwarder(place.ledger, place.api(), terms, BillingCounters(), Clock(), vouch=lambda _: False)
    assert await early.flush_tenant("a", timeout_s=0.2) == 1
    await place.count("a", 7)
    await place.count("a", 7, "llm_tokens")
    assert await early.flush_tenant("a", timeout_s=0.2) == 2
    assert place.at_stripe() == {}
    assert await place.rows() == []


async def test_nothing_is_sent_when_the_call_could_end_after_its_period_closed(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    forwarder = place.forwarder()
    await forwarder.decide()
    # Claimed in time, but the pace lets it wait until there is no time for a call left.
    await place.sql("update stripe_outbox set deadline = ledger_now() + interval '62 seconds'")
    batch = await forwarder._claim(10, "")
    assert batch is not None
    batch.began_ms -= 24_000
    done = await forwarder._send(batch, batch.sends, 0)
    assert [(found.outcome, found.reason) for found in done.fates] == [("unsent", "its turn came too late")]
    await forwarder._record([done])
    assert place.at_stripe() == {}
    await place.advance(30)
    await forwarder.flush()
    await place.agree()
    assert [(row["state"], row["late"]) for row in await place.rows()] == [("delivered", False)]


async def test_a_restored_ledger_takes_nothing_for_usage_that_is_not_billed(place: Forwarding) -> None:
    await place.tenants(["a"], billed_from_s=place.now_s // HOUR_S * HOUR_S)
    await place.count("a", 1_000, hour_s=place.now_s - 5 * HOUR_S)
    await place.count("a", 7)
    forwarder = place.forwarder()
    await forwarder.flush()
    await place.advance(HOUR_S)
    await place.count("a", 9)
    await forwarder.flush()
    assert place.at_stripe() == {("a", "api_calls"): 16}
    await place.sql("delete from stripe_outbox")
    await place.sql("delete from stripe_lanes")
    # Stripe has it in another hour than the window's: then the oldest windows take it.
    await place.sql("update usage_windows set hour = hour + interval '1 hour' where amount = 9")
    async with place.ledger.transaction() as tx:
        await distrust(tx, tenant="a")
    await place.advance(2 * HOUR_S)
    for _ in range(3):
        await forwarder.flush()
    assert place.at_stripe() == {("a", "api_calls"): 16}


async def test_an_answer_that_comes_after_a_restore_says_where_the_delta_lies(place: Forwarding) -> None:
    """The backup is from before the row was moved; what Stripe has is compared by its hours later."""
    await place.tenants(["a"])
    await place.count("a", 7)
    forwarder = place.forwarder()
    await forwarder.decide()
    batch = await forwarder._claim(10, "")
    assert batch is not None
    done = await forwarder._send(batch, batch.sends, 0)
    sent = (await place.rows())[0]["at"]
    await place.sql(
        "update stripe_outbox set state = 'waiting', first_sent = null, tries = 0, at = at - interval '5 hours'"
    )
    await place.sql("update stripe_lanes set claim = null, claimed_until = null")
    await forwarder._record([done])
    assert [(row["state"], row["at"]) for row in await place.rows()] == [("delivered", sent)]
    await place.agree()


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
