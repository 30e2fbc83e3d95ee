"""What was delivered long ago becomes one row for each window and day, and nothing else changes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.billing.outbox.folding import KEPT_S, fold
from sidecar.billing.reconciliation.reconciler import Reconciler, Report
from sidecar.billing.reconciliation.shown import Shown
from sidecar.clock import Clock
from tests.servers.forwarding import DAY_S, HOUR_S, Forwarding


async def compared(place: Forwarding) -> Report:
    api = place.api()
    shown = Shown(api, calls_per_s=100_000, pause_s=0)
    return await Reconciler(place.ledger, api, Clock(), shown=shown, pause_s=0).run(repair=True)


async def folded(place: Forwarding) -> int:
    """Fold until nothing is left to."""
    went, rounds = 0, 0
    while True:
        last = await fold(place.ledger, lanes=1)
        went += last
        rounds = 0 if last else rounds + 1
        if rounds > 1:
            return went


async def sent(place: Forwarding, times: int, tenant: str = "a", **window: Any) -> None:
    """Count and send some deltas of one window."""
    forwarder = place.forwarder()
    for _ in range(times):
        await place.count(tenant, 5, **window)
        await place.count(tenant, 1_500, "llm_tokens", **window)
        await forwarder.flush()
        await place.advance(61)


async def sums(place: Forwarding) -> list[tuple[Any, ...]]:
    """What the rows stand for, by window, by day and billing period of the timestamps."""
    return [
        tuple(row)
        for row in await place.sql(
            "select tenant, metric, period, hour, date_trunc('day', at, 'UTC') as day, deadline, late, max(number),"
            " sum(amount), sum(value), max(at) from stripe_outbox"
            " group by 1, 2, 3, 4, 5, 6, 7 order by 1, 2, 3, 4, 5, 6, 7"
        )
    ]


async def test_deliveries_of_a_window_become_one_row_and_its_numbers_go_on(place: Forwarding) -> None:
    await place.tenants(["a", "b"])
    hour_s = place.now_s // HOUR_S * HOUR_S
    await place.to(hour_s + HOUR_S)
    await sent(place, 3)
    await sent(place, 1, "b")
    window_s = place.now_s
    before = await sums(place)
    assert await folded(place) == 0, "all of it is young"
    await place.to(window_s + KEPT_S + 2 * DAY_S)
    assert await folded(place) == 4
    assert await sums(place) == before
    assert sorted((row["tenant"], row["metric"], row["number"], row["folded"]) for row in await place.rows()) == [
        ("a", "api_calls", 3, 2),
        ("a", "llm_tokens", 3, 2),
        ("b", "api_calls", 1, 0),
        ("b", "llm_tokens", 1, 0),
    ]
    assert await folded(place) == 0
    await place.count("a", 7, hour_s=window_s)
    await place.forwarder().flush()
    late = [row for row in await place.rows() if row["number"] == 4]
    assert [(row["amount"], row["late"], row["state"]) for row in late] == [(7, True, "delivered")]
    await place.agree()


async def test_a_period_that_is_still_open_and_late_usage_keep_their_sums(place: Forwarding) -> None:
    start_s = place.now_s // HOUR_S * HOUR_S
    await place.tenants(["a"], anchor_s=start_s - 10 * DAY_S)
    await place.tenants(["b"], anchor_s=start_s - 10 * DAY_S)
    await place.sql("update tenants set interval_months = 12 where id = 'b'")
    await place.to(start_s + HOUR_S)
    await sent(place, 2)
    await sent(place, 2, "b")
    window_s = place.now_s
    await place.to(start_s + 25 * DAY_S)
    await sent(place, 2, hour_s=window_s)  # late by now
    before = await sums(place)
    await place.to(start_s + 25 * DAY_S + KEPT_S + 2 * DAY_S)
    assert await folded(place) > 0
    assert await sums(place) == before
    assert len(await place.rows()) == len(before)
    report = await compared(place)
    assert not report.bad
    assert report.repairs == ()
    await place.agree()


@pytest.mark.parametrize("moved", [False, True])
async def test_what_shows_in_the_summary_of_the_next_period_is_not_folded_into_what_does_not(
    place: Forwarding, moved: bool
) -> None:
    hour_s = place.now_s // HOUR_S * HOUR_S + HOUR_S
    turns_s = hour_s + 601
    await place.to(hour_s + 180)
    # Unless it is moved, the anchor's minute is where the period ends; else periods turned in another one before.
    await place.tenants(["a"], anchor_s=hour_s + 301 - 10 * DAY_S if moved else turns_s)
    forwarder = place.forwarder()
    for at_s in (hour_s + 180, hour_s + 320, turns_s - 1 if moved else turns_s + 20):
        await place.to(at_s)
        await place.count("a", 5, hour_s=hour_s)
        await forwarder.flush()
    await place.to(turns_s + 20)
    await place.sql("update tenants set anchor = to_timestamp($1)", turns_s)
    minutes = [int(row["at"].timestamp()) // 60 * 60 - hour_s for row in await place.rows()]
    assert minutes == [180, 300, 600], "all of the period that ended, and the last in the minute it did"
    await place.to(turns_s + KEPT_S + 2 * DAY_S)
    await folded(place)
    assert (await compared(place)).lines == ()
    await place.agree()


async def test_rows_that_are_not_delivered_stay_as_they_are(place: Forwarding) -> None:
    await place.tenants(["a"])
    hour_s = place.now_s // HOUR_S * HOUR_S
    await place.to(hour_s + HOUR_S)
    await sent(place, 4)
    await place.sql(
        "update stripe_outbox set state = 'parked', delivered = null, reason = 'sums do not tell' where number = 2"
    )
    await place.advance(KEPT_S + 2 * DAY_S)
    assert await folded(place) == 4
    assert [(row["number"], row["state"], row["folded"]) for row in await place.rows()] == [
        (2, "parked", 0),
        (4, "delivered", 2),
    ] * 2


async def test_several_processes_fold_at_once(place: Forwarding) -> None:
    names = [f"t{number}" for number in range(12)]
    await place.tenants(names)
    hour_s = place.now_s // HOUR_S * HOUR_S
    await place.to(hour_s + HOUR_S)
    forwarder = place.forwarder()
    for _ in range(2):
        await place.count_all([(name, "api_calls", 5) for name in names])
        await forwarder.flush()
        await place.advance(61)
    before = await sums(place)
    await place.advance(KEPT_S + 2 * DAY_S)
    went = 0
    for _ in range(3):
        went += sum(await asyncio.gather(*(fold(place.ledger, lanes=2) for _ in range(4))))
    assert went == len(names)
    assert await sums(place) == before
    await place.agree()
