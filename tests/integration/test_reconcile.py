"""Ledger and Stripe compared, really and with the stand-in: drift of each kind is found, explained, repaired or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from sidecar.billing.reconciliation import mending
from sidecar.billing.reconciliation.drift import (
    IN_DOUBT,
    LATE,
    MINUTE_UNKNOWN,
    PARKED,
    RECENT,
    UNEXPLAINED,
    WAITING,
    Line,
)
from sidecar.billing.reconciliation.reconciler import Reconciler, Report
from sidecar.billing.reconciliation.shown import Shown
from sidecar.clock import Clock
from sidecar.errors import Conflict, StripeUnavailable
from sidecar.ledger import audit
from tests.servers.forwarding import DAY_S, HOUR_S, Forwarding, forwarding
from tests.servers.stripe import Stripe

LANE = ("a", "api_calls")


@pytest.fixture
async def place(database: str, stripe: Stripe) -> AsyncIterator[Forwarding]:
    async with forwarding(database, stripe) as opened:
        # After noon, so that no test crosses midnight by chance.
        await opened.to((opened.now_s // DAY_S + 1) * DAY_S + 12 * HOUR_S + 300)
        yield opened


def reconciler(place: Forwarding) -> Reconciler:
    api = place.api()
    return Reconciler(place.ledger, api, Clock(), shown=Shown(api, calls_per_s=100_000, pause_s=0), pause_s=0)


async def compared(place: Forwarding, **how: Any) -> Report:
    return await reconciler(place).run(**how)


def explained(report: Report) -> dict[str, int]:
    """What the days of a report come to together."""
    found: dict[str, int] = {}
    for line in report.lines:
        if line.span == "day":
            for kind, amount in line.explained.items():
                found[kind] = found.get(kind, 0) + amount
    return found


async def delivered(place: Forwarding, *amounts: int) -> None:
    """Have so much counted and delivered in an hour each, the last one an hour ago."""
    await place.tenants(["a"])
    forwarder = place.forwarder()
    for amount in amounts:
        await place.count("a", amount)
        await forwarder.flush()
        await place.advance(HOUR_S)
    assert await place.states() == {"delivered": len(amounts)}


async def lose(place: Forwarding, amount: int) -> None:
    """Have Stripe lose the event of an amount, as if somebody had cancelled it."""
    event = next(e for e in place.stripe.standin.account.metering.events() if e.value == amount)
    place.stripe.standin.account.metering.cancel(event)


async def foreign(place: Forwarding, amount: int, identifier: str) -> None:
    """Send something that the outbox knows nothing of."""
    await place.api().v1.billing.meter_events.create_async(
        {
            "event_name": "quota_api_calls",
            "identifier": identifier,
            "payload": {"stripe_customer_id": place.customers["a"], "value": str(amount)},
            "timestamp": place.now_s,
        }
    )


async def test_what_agrees_is_no_difference(place: Forwarding) -> None:
    await delivered(place, 7, 5)
    await place.count("a", 1_500, "llm_tokens")
    await place.forwarder().flush()
    await place.advance(HOUR_S)
    report = await compared(place)
    assert report == Report(2, (), (), ())
    last = await reconciler(place).last()
    assert (last.lanes, last.unread, last.repaired, last.problem) == (2, 0, 0, "")
    assert last.ended_s >= last.began_s > 0


async def test_what_is_on_its_way_is_explained(place: Forwarding) -> None:
    await delivered(place, 7)
    await place.count("a", 5)
    report = await compared(place)
    assert explained(report) == {WAITING: -5}
    await place.forwarder().outbox.decide(0)
    for shard in range(16):
        await place.forwarder().outbox.decide(shard)
    report = await compared(place, repair=True)
    assert explained(report) == {WAITING: -5}
    assert report.repairs == ()
    assert not report.bad
    await place.sql("update stripe_outbox set state = 'in_doubt', first_sent = at, look_at = at where amount = 5")
    assert explained(await compared(place)) == {IN_DOUBT: -5}
    await place.sql("update stripe_outbox set state = 'parked' where amount = 5")
    assert explained(await compared(place)) == {PARKED: -5}


async def test_what_was_confirmed_a_moment_ago_need_not_show_yet(place: Forwarding) -> None:
    await delivered(place, 7)
    place.stripe.options(visibility_s=600)
    await place.count("a", 5)
    await place.forwarder().flush()
    assert explained(await compared(place, repair=True)) == {RECENT: -5}
    await place.advance(700)
    assert explained(await compared(place)) == {}


@pytest.mark.parametrize("turns_s", [0, 300, 301])
async def test_late_usage_is_told_in_both_of_its_days_and_periods(place: Forwarding, turns_s: int) -> None:
    hour_s = place.now_s // HOUR_S * HOUR_S
    await place.tenants(["a"], anchor_s=hour_s + turns_s)
    await place.to(hour_s + 600)
    await place.count("a", 7, hour_s=hour_s)  # of the period that ends in this hour, unless it began with it
    await place.forwarder().flush()
    await place.advance(32 * DAY_S)
    await place.count("a", 5, hour_s=hour_s)
    await place.forwarder().flush()
    await place.advance(HOUR_S)
    report = await compared(place, repair=True)
    for span in ("day", "period"):
        lines = [line for line in report.lines if line.span == span]
        assert [(line.ledger, line.delivered, line.stripe, line.late) for line in lines] == [
            (12, 7, 7, -5),
            (0, 5, 5, 5),
        ]
        assert [line.explained for line in lines] == [{LATE: -5}, {LATE: 5}]
    assert not report.bad
    await place.agree()


@pytest.mark.parametrize(("turns_s", "ended"), [(30, False), (30, True), (301, False)])
async def test_an_adopted_row_lies_in_its_windows_period_though_only_its_hour_is_known(
    place: Forwarding, turns_s: int, ended: bool
) -> None:
    hour_s = place.now_s // HOUR_S * HOUR_S
    await place.tenants(["a"], anchor_s=hour_s + turns_s)
    await place.to(hour_s + 1_800)
    await place.count("a", 7, hour_s=hour_s, period_s=None if ended else hour_s + turns_s)
    await place.forwarder().flush()
    await place.sql("update stripe_outbox set adopted = true, at = hour")
    await place.advance(HOUR_S)
    assert await compared(place) == Report(2, (), (), ())


@pytest.mark.parametrize("confirmed_s", [0, HOUR_S])
async def test_what_arrived_in_the_minute_a_period_turned_in_is_sure_to_be_its_own_when_summaries_must_show_it(
    place: Forwarding, confirmed_s: int
) -> None:
    hour_s = place.now_s // HOUR_S * HOUR_S
    await place.tenants(["a"], anchor_s=hour_s + 301)
    await place.to(hour_s + 600)
    await place.count("a", 7, hour_s=hour_s)
    await place.forwarder().flush()
    await place.advance(confirmed_s)
    report = await compared(place)
    assert [line.explained for line in report.lines] == ([] if confirmed_s else [{LATE: -7}, {LATE: 7}])
    assert not report.bad
    if confirmed_s:
        await lose(place, 7)
        lost = [line for line in (await compared(place)).lines if line.span == "period"]
        assert [(line.from_s - hour_s, line.stripe, line.explained) for line in lost] == [(300, -7, {UNEXPLAINED: -7})]


async def test_a_delivery_that_stripe_lacks_is_found_and_sent_again(place: Forwarding) -> None:
    await delivered(place, 7, 5, 9)
    await lose(place, 5)
    report = await compared(place)
    assert explained(report) == {UNEXPLAINED: -5}
    assert report.bad
    before = {row["number"]: row["identifier"] for row in await place.rows() if row["amount"] == 5}
    report = await compared(place, repair=True)
    assert [(r.kind, r.amount, r.identifier) for r in report.repairs] == [("sent_again", 5, before[1])]
    assert explained(report) == {WAITING: -5}
    assert await place.states() == {"delivered": 2, "waiting": 1}
    await place.forwarder().flush()
    await place.agree()
    await place.advance(HOUR_S)
    assert await compared(place, repair=True) == Report(2, (), (), ())
    async with place.ledger.transaction() as tx:
        entries = [entry for entry in await audit.read(tx) if entry.action == "stripe.repair"]
    assert [(entry.tenant, entry.detail["kind"]) for entry in entries] == [("a", "sent_again")]


async def test_nothing_is_sent_again_while_nothing_later_was_seen_to_arrive(place: Forwarding) -> None:
    await delivered(place, 7, 5)
    await lose(place, 5)
    report = await compared(place, repair=True)
    assert report.repairs == ()
    assert explained(report) == {UNEXPLAINED: -5}
    # Nor because a person asks, until a day has passed.
    assert (await compared(place, repair=True, asked=True)).repairs == ()
    await place.advance(DAY_S)
    assert (await compared(place, repair=True)).repairs == ()
    assert [r.kind for r in (await compared(place, repair=True, asked=True)).repairs] == ["sent_again"]
    await place.forwarder().flush()
    await place.agree()


async def test_a_window_that_the_outbox_overlooked_is_decided_again(place: Forwarding) -> None:
    await delivered(place, 7)
    await place.count("a", 5)
    await place.sql("update shards set touched_from = null")
    report = await compared(place)
    assert explained(report) == {WAITING: -5}
    report = await compared(place, repair=True)
    assert [(r.kind, r.amount) for r in report.repairs] == [("decided_again", 5)]
    await place.forwarder().flush()
    await place.agree()


async def test_a_row_that_was_set_aside_and_arrived_all_the_same_is_settled(place: Forwarding) -> None:
    await delivered(place, 7, 5)
    await place.sql("update stripe_outbox set state = 'parked', delivered = null where amount = 5")
    report = await compared(place)
    assert explained(report) == {}
    report = await compared(place, repair=True)
    assert [(r.kind, r.amount) for r in report.repairs] == [("settled", 5)]
    assert await place.states() == {"delivered": 2}


async def test_what_arrived_twice_is_cancelled_only_when_a_person_asks(place: Forwarding) -> None:
    await delivered(place, 7, 5)
    [row] = [row for row in await place.rows() if row["amount"] == 5]
    async with place.ledger.transaction() as tx:
        [sent] = [
            r for r in await mending.rows_between(tx, _lane(), 0, place.now_s) if r.identifier == row["identifier"]
        ]
        await mending.send_again(tx, [sent], "wrongly")
    await place.forwarder().flush()
    await place.advance(HOUR_S)
    assert place.at_stripe() == {LANE: 17}
    report = await compared(place, repair=True)
    assert explained(report) == {UNEXPLAINED: 5}
    assert report.repairs == ()
    report = await compared(place, repair=True, asked=True)
    assert [(r.kind, r.identifier) for r in report.repairs] == [("cancelled", row["identifier"])]
    assert explained(report) == {}
    await place.agree()


async def test_what_somebody_else_sent_is_reported_and_never_touched(place: Forwarding) -> None:
    await delivered(place, 7)
    await foreign(place, 3, "somebody-elses")
    report = await compared(place, repair=True, asked=True)
    assert explained(report) == {UNEXPLAINED: 3}
    assert report.repairs == ()
    assert report.bad
    assert [line.stripe for line in report.lines if line.span == "period"] == [10]


async def test_rows_of_one_minute_that_cannot_be_told_apart_are_said_to_be_so(place: Forwarding) -> None:
    await delivered(place, 3, 2, 1)
    await place.sql("update stripe_outbox set at = (select min(at) from stripe_outbox)")
    metering = place.stripe.standin.account.metering
    for event in metering.events():
        metering.cancel(event)
    [at] = await place.sql("select extract(epoch from min(at))::bigint as s from stripe_outbox")
    await place.api().v1.billing.meter_events.create_async(
        {
            "event_name": "quota_api_calls",
            "identifier": "three",
            "payload": {"stripe_customer_id": place.customers["a"], "value": "3"},
            "timestamp": at["s"],
        }
    )
    report = await compared(place, repair=True, asked=True)
    assert explained(report) == {MINUTE_UNKNOWN: -3}
    assert report.repairs == ()
    assert report.bad


async def test_summaries_that_lag_for_hours_make_nothing_be_sent_twice(place: Forwarding) -> None:
    place.stripe.options(visibility_s=3 * HOUR_S)
    await delivered(place, 7, 5, 9)
    report = await compared(place, repair=True, asked=True)
    assert report.repairs == ()
    assert report.bad
    await place.advance(3 * HOUR_S)
    assert not (await compared(place, repair=True, asked=True)).lines
    await place.agree()


async def test_usage_before_the_tenant_was_billed_and_of_an_earlier_customer_is_left_out(place: Forwarding) -> None:
    await delivered(place, 7)
    await place.advance(DAY_S)
    made = await place.api().v1.customers.create_async({"name": "a again"})
    await place.sql(
        "update billing_customers set customer = $1, billed_from = date_trunc('hour', ledger_now())", made.id
    )
    place.customers["a"] = made.id
    await place.count("a", 4)
    await place.forwarder().flush()
    await place.advance(HOUR_S)
    assert await compared(place) == Report(2, (), (), ())


async def test_repairs_beside_a_busy_forwarder_with_failures_bill_everything_once(place: Forwarding) -> None:
    names = ["a", "b", "c"]
    await place.tenants(names)
    place.stripe.faults(
        *(
            {"kind": kind, "path": "/v1/billing/meter_events", "share": 0.08, "seed": seed}
            for seed, kind in enumerate(("error_before", "error_after", "cut_before", "cut_after", "rate_limited"))
        )
    )
    place.stripe.options(visibility_s=5)
    random = Random(7)
    forwarder = place.forwarder()
    lost = 0
    for step in range(12):
        await place.count_all([(name, "api_calls", random.randint(1, 9)) for name in names])
        await asyncio.gather(forwarder.flush(), compared(place, repair=True, asked=True))
        await place.advance(random.choice((300, 1_200, HOUR_S)))
        if step % 4 == 3:
            events = [e for e in place.stripe.standin.account.metering.events() if not e.cancelled]
            place.stripe.standin.account.metering.cancel(random.choice(events))
            lost += 1
    place.stripe.faults()
    for _ in range(4):
        await place.count_all([(name, "api_calls", 1) for name in names])
        await forwarder.flush()
        await place.advance(2 * HOUR_S)
        await compared(place, repair=True, asked=True)
    await forwarder.flush()
    assert lost
    await place.agree()


async def test_a_customer_that_is_gone_does_not_stop_the_comparison_of_others(place: Forwarding) -> None:
    await delivered(place, 7)
    await place.tenants(["b"])
    await place.api().v1.customers.delete_async(place.customers["b"])
    report = await compared(place)
    assert {(unread.tenant, unread.metric) for unread in report.unread} == {("b", "api_calls"), ("b", "llm_tokens")}
    assert all("No such customer" in unread.cause for unread in report.unread)
    assert report.bad
    assert (await reconciler(place).last()).unread == 2


async def test_what_was_found_is_kept_for_every_process(place: Forwarding) -> None:
    await delivered(place, 7)
    await foreign(place, 3, "x")
    await compared(place)
    other = reconciler(place)
    await other.refresh()
    reading = other.counters.reading(other._clock.monotonic_ms() + 5_000)
    assert reading["sidecar_stripe_drift_units"]["unexplained",] == [3]
    assert reading["sidecar_stripe_drift_tenants"]["unexplained",] == [1]
    assert reading["sidecar_stripe_compared_age_seconds"][()][0] >= 5_000
    kept = await place.sql("select span, stripe, matters from stripe_drift order by span")
    assert [tuple(row) for row in kept] == [("day", 10, True), ("period", 10, True)]
    await foreign(place, 1, "y")
    await compared(place, tenant="nobody")
    assert len(await place.sql("select from stripe_drift")) == 2


async def test_one_comparison_at_a_time_and_on_schedule(place: Forwarding) -> None:
    await delivered(place, 7)
    first, second = reconciler(place), reconciler(place)
    assert await first.due(DAY_S)
    await first._take()
    with pytest.raises(Conflict):
        await second.run()
    await first.run()
    assert not await second.due(DAY_S)
    await place.advance(DAY_S)
    assert await second.due(DAY_S)


async def test_the_scheduled_comparison_repairs_and_sets_the_gauges(place: Forwarding) -> None:
    await delivered(place, 7, 5, 9)
    await lose(place, 5)
    scheduled = reconciler(place)
    task = asyncio.create_task(scheduled.loop(DAY_S))
    async with asyncio.timeout(20):
        while scheduled.counters.compared_ms is None:
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert scheduled.counters.repaired["sent_again"] == 1
    assert scheduled.counters.units[WAITING] == 5
    assert scheduled.counters.units[UNEXPLAINED] == 0
    assert await place.states() == {"delivered": 2, "waiting": 1}


async def test_a_comparison_that_stripe_breaks_off_is_told_and_tried_again_later(place: Forwarding) -> None:
    await delivered(place, 7)
    place.stripe.faults({"kind": "error_before", "path": "*event_summaries"})
    with pytest.raises(StripeUnavailable):
        await compared(place)
    last = await reconciler(place).last()
    assert "Stripe answered 500" in last.problem
    assert not await reconciler(place).due(DAY_S)
    place.stripe.faults()
    await place.advance(900)
    assert await reconciler(place).due(DAY_S)
    assert await compared(place) == Report(2, (), (), ())
    assert (await reconciler(place).last()).problem == ""


async def test_a_failing_call_is_tried_again_within_a_comparison(place: Forwarding) -> None:
    await delivered(place, 7)
    place.stripe.faults({"kind": "rate_limited", "path": "*event_summaries", "count": 2})
    assert await compared(place) == Report(2, (), (), ())


def test_a_line_is_what_the_issue_asks_for() -> None:
    named = set(Line.__struct_fields__)
    assert {"tenant", "metric", "ledger", "delivered", "waiting", "in_doubt", "parked", "late", "stripe"} <= named


def _lane() -> Any:
    class Named:
        tenant = "a"
        metric = "api_calls"

    return Named()
