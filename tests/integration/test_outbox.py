"""What is decided, when, and what is not."""

from __future__ import annotations

from decimal import Decimal

import pytest

from sidecar.billing.outbox.counters import BillingCounters
from sidecar.billing.outbox.outbox import Outbox
from sidecar.billing.outbox.rejection import parked, rejected
from sidecar.errors import Conflict
from sidecar.ledger import plans
from sidecar.ledger.distrust import distrust
from tests.servers.forwarding import CATALOGUE, HOUR_S, Forwarding

WITHOUT_TOKENS = "\n".join(line for line in CATALOGUE.splitlines() if "llm_tokens" not in line)


def outbox(place: Forwarding, interval_s: int = 300) -> Outbox:
    return Outbox(place.ledger, BillingCounters(), interval_s=interval_s, close_delay_s=HOUR_S)


async def decide(place: Forwarding) -> int:
    found = outbox(place)
    return sum([await found.decide(shard) or 0 for shard in await found.due(now=True)])


async def test_a_window_is_decided_once_and_only_its_growth_after_that(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    assert [await decide(place), await decide(place)] == [1, 0]
    assert await outbox(place).due(now=True) == []
    await place.sql("update stripe_outbox set state = 'delivered', delivered = now()")
    await place.count("a", 5)
    assert await decide(place) == 1
    assert [(row["number"], row["amount"]) for row in await place.rows()] == [(1, 7), (2, 5)]
    assert len({row["at"] for row in await place.rows()}) == 2


async def test_while_a_lane_has_untried_deltas_growth_gathers(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    assert await decide(place) == 1
    for _ in range(3):
        await place.count("a", 1)
        assert await decide(place) == 0
    await place.sql("update stripe_outbox set state = 'delivered', delivered = now()")
    assert await decide(place) == 1
    assert [row["amount"] for row in await place.rows()] == [7, 3]


async def test_usage_before_billing_began_is_not_sent(place: Forwarding) -> None:
    await place.tenants(["a"], billed_from_s=place.now_s // HOUR_S * HOUR_S)
    await place.count("a", 100, hour_s=place.now_s - HOUR_S)
    await place.count("a", 7)
    assert await decide(place) == 1
    assert [row["amount"] for row in await place.rows()] == [7]


async def test_usage_counted_before_its_customer_was_known_is_sent(place: Forwarding) -> None:
    await place.count("a", 7)
    assert await decide(place) == 0
    await place.tenants(["a"])
    assert await decide(place) == 1


async def test_usage_of_a_metric_without_a_meter_waits_for_one(place: Forwarding) -> None:
    await place.tenants(["a"])
    [meter] = await place.sql("delete from stripe_objects where name = 'api_calls' returning *")
    await place.count("a", 7)
    assert await decide(place) == 0
    await place.sql(
        "insert into stripe_objects (id, kind, name, metric, event_name) values ($1, 'meter', $2, $2, $3)",
        meter["id"],
        meter["metric"],
        meter["event_name"],
    )
    await place.count("a", 1)
    assert await decide(place) == 1
    assert [row["amount"] for row in await place.rows()] == [8]


async def test_a_metric_that_leaves_the_catalogue_is_billed_to_its_end(
    place: Forwarding, caplog: pytest.LogCaptureFixture
) -> None:
    await place.tenants(["a"])
    await place.count("a", 5_500, "llm_tokens")
    forwarder = place.forwarder()
    await forwarder.flush()
    await place.count("a", 250, "llm_tokens")
    async with place.ledger.transaction() as tx:
        await plans.apply(tx, WITHOUT_TOKENS, {}, actor="test")
    fresh = place.forwarder()
    await fresh.flush()
    await place.agree()
    assert place.at_stripe()["a", "llm_tokens"] == Decimal("5.75")
    assert await fresh.outbox.left_behind() == [], "what was counted by then may still be on its way here"
    await place.advance(2 * HOUR_S)
    await place.count("a", 50, "llm_tokens", hour_s=place.now_s - 2 * HOUR_S)
    assert await fresh.outbox.left_behind() == []
    await fresh.flush()
    await place.agree()
    caplog.set_level("INFO")
    assert [await fresh.outbox.left_behind(), await fresh.outbox.left_behind()] == [["llm_tokens"], []]
    assert "a metric left the catalogue" in caplog.text


async def test_a_large_amount_is_cut(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 1_234_567_890_123_456, "llm_tokens")
    assert await decide(place) == 2
    rows = await place.rows()
    assert [row["amount"] for row in rows] == [1_234_567_890_123_450, 6]
    assert rows[0]["at"] != rows[1]["at"]
    await place.forwarder().flush()
    await place.agree()


async def test_shards_take_turns(place: Forwarding) -> None:
    names = [f"t{n}" for n in range(64)]
    await place.tenants(names)
    found = outbox(place, interval_s=160)
    await place.count_all([(name, "api_calls", 1) for name in names])
    for shard in await found.due():
        await found.decide(shard)
    await place.sql("update stripe_outbox set state = 'delivered', delivered = now()")
    turns = []
    await place.see_time()
    begun_s = place.now_s
    for number in range(1, 17):
        await place.to(begun_s + 10 * number)  # however long it takes here
        await place.count_all([(name, "api_calls", 1) for name in names])
        ready = await found.due()
        for shard in ready:
            await found.decide(shard)
        await place.sql("update stripe_outbox set state = 'delivered', delivered = now()")
        turns.append(len(ready))
    assert sum(turns) in (15, 16, 17)
    assert max(turns) <= 2


async def test_an_error_report_puts_a_delta_back_once(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    forwarder = place.forwarder()
    place.stripe.faults({"kind": "async_error", "count": 1, "path": "/v1/billing/meter_events"})
    await forwarder.flush()
    assert place.at_stripe() == {}
    identifier = (await place.rows())[0]["identifier"]
    async with place.ledger.transaction() as tx:
        assert await rejected(tx, identifier, "archived_meter", "The meter is archived.")
        assert not await rejected(tx, identifier, "archived_meter", "The meter is archived.")
        assert not await rejected(tx, "somebodyelses", "archived_meter", "The meter is archived.")
    await place.advance(300)
    await forwarder.flush()
    await place.agree()
    assert (await place.rows())[0]["attempt"] == 2


async def test_an_error_report_on_a_delta_sent_twice_is_settled_by_the_summaries(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    forwarder = place.forwarder()
    place.stripe.faults({"kind": "cut_after", "count": 1, "path": "/v1/billing/meter_events"})
    await forwarder.flush()
    await place.advance(60)
    await forwarder.flush()
    identifier = (await place.rows())[0]["identifier"]
    async with place.ledger.transaction() as tx:
        assert await rejected(tx, identifier, "archived_meter", "The meter is archived.")
    assert await place.states() == {"in_doubt": 1}
    await place.advance(HOUR_S)
    await forwarder.flush()
    assert await place.states() == {"delivered": 1}
    await place.agree()


async def test_a_report_on_a_delta_that_is_under_way_is_taken_later(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    await decide(place)
    await place.sql("update stripe_outbox set state = 'sending', first_sent = now(), tries = 1")
    async with place.ledger.transaction() as tx:
        with pytest.raises(Conflict):
            await rejected(tx, (await place.rows())[0]["identifier"], "archived_meter", "")


async def test_a_value_that_stripe_never_takes_is_set_aside_with_the_reason(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 1_500, "llm_tokens")
    place.stripe.options(whole_values_only=True)
    await place.forwarder().flush()
    assert await place.states() == {"parked": 1}
    async with place.ledger.transaction() as tx:
        [found] = await parked(tx)
    assert found.amount == 1_500
    assert "Stripe refused" in found.reason


async def test_a_distrusted_ledger_sends_nothing_before_the_comparison(place: Forwarding) -> None:
    await place.tenants(["a"])
    await place.count("a", 7)
    await decide(place)
    before = (await place.sql("select ledger_id from installation"))[0][0]
    async with place.ledger.transaction() as tx:
        await distrust(tx, tenant="a")
    assert (await place.sql("select ledger_id from installation"))[0][0] != before
    assert await place.rows() == []
    forwarder = place.forwarder()
    await forwarder.flush()
    assert place.at_stripe() == {}
    await place.advance(HOUR_S)
    for _ in range(2):
        await forwarder.flush()
    await place.agree()
