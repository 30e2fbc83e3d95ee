"""S1: whatever is counted, however late, and whatever fails, Stripe's total becomes the ledger's."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.billing.outbox.delta import DIGITS_MAX, MINUTE_S, Terms, Window, moment, pieces, place
from sidecar.catalogue.amount import format_amount
from tests.servers.forwarding import DAY_S, HOUR_S, Forwarding

NOW_S = 1_795_000_000
names = (f"tenant-{number}" for number in itertools.count())

KINDS = ("rate_limited", "error_before", "error_after", "cut_before", "cut_after")
counts = st.tuples(
    st.just("count"),
    st.sampled_from(["api_calls", "llm_tokens"]),
    st.one_of(st.integers(1, 2_000), st.integers(10**15, 4 * 10**15)),
    st.sampled_from([0, 0, 0, 1, 30, 26 * 24, 40 * 24]),
)
passages = st.tuples(st.just("pass"), st.sampled_from([1, 60, 700, 3_700, 25 * 3_600, 31 * DAY_S]))
failures = st.tuples(st.just("fail"), st.sampled_from(KINDS), st.integers(1, 4))
sends = st.tuples(st.just("send"))
histories = st.lists(st.one_of(counts, counts, passages, failures, sends, sends), min_size=4, max_size=16)


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=histories)
async def test_stripes_total_becomes_the_ledgers_whatever_happens(place: Forwarding, history: list[tuple]) -> None:  # type: ignore[type-arg]
    tenant = next(names)
    await place.tenants([tenant], anchor_s=place.now_s // HOUR_S * HOUR_S - 10 * DAY_S)
    forwarder = place.forwarder(timeout_s=5)
    for kind, *given_ in history:
        if kind == "count":
            metric, amount, hours_ago = given_
            await place.count(tenant, amount, metric, hour_s=place.now_s - hours_ago * HOUR_S)
        elif kind == "pass":
            await place.advance(given_[0])
        elif kind == "fail":
            place.stripe.faults({"kind": given_[0], "count": given_[1], "path": "/v1/billing/meter_events"})
        else:
            await forwarder.decide()
            await forwarder.pump()
    place.stripe.faults()
    for _ in range(12):
        await place.advance(400)
        await forwarder.flush()
    assert await place.sql("select state, reason from stripe_outbox where state <> 'delivered'") == []
    await place.agree()
    assert place.refusals() == []


@given(
    hours_ago=st.integers(-3, 60 * 24),
    anchor_s=st.integers(NOW_S - 400 * DAY_S, NOW_S),
    months=st.sampled_from([1, 3, 12]),
    into_s=st.integers(0, HOUR_S - 1),
    taken=st.sets(st.integers(NOW_S // MINUTE_S - 120, NOW_S // MINUTE_S), max_size=120),
    since_ago_s=st.one_of(st.none(), st.integers(-5, 2 * HOUR_S), st.integers(0, 70 * DAY_S)),
)
def test_a_timestamp_is_one_that_stripe_takes_and_lies_where_it_is_billed(
    hours_ago: int, anchor_s: int, months: int, into_s: int, taken: set[int], since_ago_s: int | None
) -> None:
    from sidecar.catalogue.period import bounds  # noqa: PLC0415 - next to its only use

    hour_s = (NOW_S - hours_ago * HOUR_S) // HOUR_S * HOUR_S
    period_s = bounds("billing", hour_s + into_s, anchor_s, months)[0]
    window = Window("t", "m", period_s, hour_s)
    since_s = 0 if since_ago_s is None else NOW_S - since_ago_s
    found = place(window, Terms(anchor_s, months, HOUR_S, since_s), NOW_S)
    if max(hour_s, period_s, since_s) > NOW_S:
        assert found is None
        return
    assert found is not None
    at_s = moment(found, taken)
    assert found.from_s <= at_s <= found.to_s <= NOW_S
    assert at_s > NOW_S - 35 * DAY_S
    if bounds("billing", since_s, anchor_s, months)[0] == bounds("billing", at_s, anchor_s, months)[0]:
        assert at_s >= since_s
    current_s = bounds("billing", NOW_S, anchor_s, months)[0]
    if found.late:
        assert at_s >= current_s
    else:
        assert bounds("billing", at_s, anchor_s, months)[0] == period_s
        assert hour_s <= at_s < hour_s + HOUR_S
    free = set(range(found.from_s // MINUTE_S, found.to_s // MINUTE_S + 1)) - taken
    assert not free or at_s // MINUTE_S in free


@given(amount=st.integers(0, 2**53), scale=st.integers(0, 9))
def test_pieces_add_up_and_are_short_enough(amount: int, scale: int) -> None:
    found = pieces(amount, scale)
    assert sum(found) == amount
    assert all(len(format_amount(piece, scale).replace(".", "").lstrip("0")) <= DIGITS_MAX for piece in found)
    assert len(found) <= 11
