"""Leases of which a writer does not speak for a while."""

from __future__ import annotations

import pytest

from sidecar.catalogue.model import RouteRule
from sidecar.catalogue.snapshot import LimitRule
from sidecar.enforcement import survey
from sidecar.enforcement.account import Account
from sidecar.enforcement.exchange import WOKEN_PER_SYNC, WOKEN_UNUSED, ShardExchange
from sidecar.enforcement.lease import NO_LEASE, REST_GRAIN_MS
from sidecar.enforcement.limit_period import FIRST_LEASE_UNITS
from sidecar.enforcement.limit_state import IDLE_AFTER_MS, LimitState
from sidecar.enforcement.succession import LEASED_ON_PERIODS
from sidecar.enforcement.terms import Terms
from tests.unit.tenants import (
    HARD,
    NOON_S,
    ONE,
    applied,
    composed,
    exchange,
    known,
    lease,
    limit,
    limit_of,
    plan,
    reply,
)

NOW_MS = 1_000_000
REST_MS = 90_000
LARGE = limit(HARD, included=1_000_000, stop=1_000_000)
MINUTE = limit(LARGE, period="minute")


def rested(*tenants: str, rule: LimitRule = LARGE, units: int = FIRST_LEASE_UNITS, spent: int = 0) -> ShardExchange:
    """A shard that has just been granted the same units for each tenant."""
    shard = exchange(Terms(lease_rest_ms=REST_MS))
    shard.wall_s = NOON_S
    said(shard, NOW_MS)  # learns the generation
    for tenant in tenants:
        account = known(shard, plan(rule, tenant=tenant))
        [(_, state, _)] = account.charge(ONE, "", "", NOON_S).limits
        state.wait_for(1)
        shard.touch(account)
    said(shard, NOW_MS, units, spent=spent)
    return shard


def said(
    shard: ShardExchange, now_ms: int, units: int = 0, *, spent: int = 0, called: tuple[str, ...] = ()
) -> list[str]:
    """Tenants that a message speaks of; each of their leases is answered with ``units``."""
    message, sent = composed(shard, now_ms)
    leases = [lease(units, spent=spent)] * max((len(part.leases) for part in message.parts), default=0)
    applied(shard, message, sent, reply(message, *leases, called=list(called)), now_ms, now_ms)
    return [part.tenant for part in message.parts]


def leases(shard: ShardExchange) -> tuple[int, int]:
    """How many, and the units left in them."""
    left = [units for units in survey.leases(shard) if units]
    return len(left), sum(left)


def test_a_small_lease_of_an_ample_limit_is_kept_and_not_reported() -> None:
    shard = rested("acme")
    assert (leases(shard), shard.pressing, shard.busy) == ((1, FIRST_LEASE_UNITS), False, True)
    assert said(shard, NOW_MS + REST_MS // 2) == []
    assert said(shard, NOW_MS + REST_MS - 1) == []


@pytest.mark.parametrize(
    ("rule", "units", "spent"),
    [
        (LARGE, FIRST_LEASE_UNITS, 999_900),
        (LARGE, FIRST_LEASE_UNITS + 1, 0),
        (limit(LARGE, scope="user"), FIRST_LEASE_UNITS, 0),
    ],
)
def test_no_other_lease_rests(rule: LimitRule, units: int, spent: int) -> None:
    shard = exchange(Terms(lease_rest_ms=REST_MS))
    said(shard, NOW_MS)
    account = Account(plan(rule), shard)
    [(_, state, _)] = account.charge(ONE, "", "u", NOON_S).limits
    state.wait_for(1)
    shard.touch(account)
    said(shard, NOW_MS, units, spent=spent)
    assert shard.pressing
    said(shard, NOW_MS + IDLE_AFTER_MS)
    assert state.left == 0


def test_a_lease_that_rested_for_long_enough_goes_back() -> None:
    shard = rested("acme")
    said(shard, NOW_MS + REST_MS // 2)
    assert said(shard, NOW_MS + REST_MS) == ["acme"]
    assert (leases(shard), shard.busy) == ((0, 0), False)


def test_a_lease_that_is_called_for_goes_back_with_the_next_message() -> None:
    shard = rested("acme", "other")
    shard.ample = True
    assert said(shard, NOW_MS + 1, called=("acme", "unknown")) == []
    assert (leases(shard), shard.ample) == ((1, FIRST_LEASE_UNITS), False)
    assert said(shard, NOW_MS + 2) == ["acme"]


def asks(shard: ShardExchange, tenant: str, units: int = 1, *, wall_s: int = NOON_S) -> LimitState:
    """A request of a tenant is decided from memory, or waits for Redis; returns its first limit."""
    account = shard.accounts[tenant]
    shard.touch(account)
    limits = account.charge(ONE, "", "", wall_s).limits
    for _, state, _ in limits:
        if state.left < units:
            state.wait_for(units)
        else:
            state.spend(units)
    return limits[0][1]


def spoken(shard: ShardExchange, now_ms: int, granted: int) -> list[tuple[str, int, int, int, int]]:
    """What a message says of leases: tenant, begin, left, want, cumulative; all that is wanted is granted."""
    message, sent = composed(shard, now_ms)
    leases = [lease(granted)] * max((len(part.leases) for part in message.parts), default=0)
    applied(shard, message, sent, reply(message, *leases), now_ms, now_ms)
    return [
        (part.tenant, one.start - NOON_S, one.left, one.want, one.cumulative)
        for part in message.parts
        for one in part.leases
    ]


def test_nothing_is_said_of_a_minute_that_ended_while_nobody_asks() -> None:
    shard = rested("acme", rule=MINUTE)
    shard.wall_s = NOON_S + 59
    assert said(shard, NOW_MS + 59_000) == []
    assert leases(shard) == (1, FIRST_LEASE_UNITS)
    shard.wall_s = NOON_S + 60
    assert leases(shard) == (0, 0)
    assert said(shard, NOW_MS + 60_000 + REST_GRAIN_MS) == []
    assert (shard.busy, limit_of(shard.accounts["acme"], "calls").lease) == (False, NO_LEASE)
    assert shard.forget(shard.accounts["acme"])


def test_who_asks_again_in_another_minute_speaks_of_that_one_only() -> None:
    shard = rested("acme", rule=MINUTE)
    shard.wall_s = NOON_S + 60
    state = asks(shard, "acme", wall_s=shard.wall_s)
    assert spoken(shard, NOW_MS + 60_000, FIRST_LEASE_UNITS) == [("acme", 60, 0, FIRST_LEASE_UNITS, 0)]
    assert state.left == FIRST_LEASE_UNITS


def test_what_was_spent_of_a_minute_that_ended_is_reported_once() -> None:
    shard = rested("acme", rule=MINUTE)
    said(shard, NOW_MS + 59_000)
    asks(shard, "acme", 3)
    shard.wall_s = NOON_S + 60
    assert spoken(shard, NOW_MS + 60_000, FIRST_LEASE_UNITS) == [
        ("acme", 0, 0, 0, 3),
        ("acme", 60, 0, FIRST_LEASE_UNITS, 0),
    ]
    assert spoken(shard, NOW_MS + 60_001, 0) == []


def test_a_report_of_a_minute_that_ended_is_repeated_until_it_has_arrived() -> None:
    shard = rested("acme", rule=MINUTE)
    said(shard, NOW_MS + 58_000)
    asks(shard, "acme", 3)
    _, sent = composed(shard, NOW_MS + 59_000)
    shard.wall_s = NOON_S + 60
    asks(shard, "acme", wall_s=shard.wall_s)
    shard.undo(sent)
    assert ("acme", 0, 0, 0, 3) in spoken(shard, NOW_MS + 60_000, FIRST_LEASE_UNITS)


def test_leases_at_rest_go_on_in_the_next_minute_while_others_ask() -> None:
    shard = rested("acme", "other", rule=MINUTE)
    said(shard, NOW_MS + 59_000)
    shard.wall_s = NOON_S + 60
    asks(shard, "other", wall_s=shard.wall_s)
    now_ms = NOW_MS + 60_000 + REST_GRAIN_MS
    assert spoken(shard, now_ms, FIRST_LEASE_UNITS) == [
        ("other", 60, 0, FIRST_LEASE_UNITS, 0),
        ("acme", 60, 0, FIRST_LEASE_UNITS, 0),
    ]
    assert leases(shard) == (2, 2 * FIRST_LEASE_UNITS)


def test_leases_that_were_not_used_for_some_periods_do_not_go_on() -> None:
    shard = rested("acme", "other", rule=limit(LARGE, period="second"))
    for second in (1, 2, 3):
        shard.wall_s = NOON_S + second
        asks(shard, "other", wall_s=shard.wall_s)
        told = spoken(shard, NOW_MS + second * 1_000 + REST_GRAIN_MS, FIRST_LEASE_UNITS)
        assert (("acme", second, 0, FIRST_LEASE_UNITS, 0) in told) == (second < LEASED_ON_PERIODS)


def test_a_lease_of_a_month_rests_on_when_the_minute_beside_it_has_ended() -> None:
    shard = exchange(Terms(lease_rest_ms=REST_MS))
    shard.wall_s = NOON_S
    said(shard, NOW_MS)
    account = known(shard, plan(limit(LARGE, name="month", period="month"), limit(MINUTE, name="minute")))
    asks(shard, "acme")
    said(shard, NOW_MS, FIRST_LEASE_UNITS)
    said(shard, NOW_MS + 59_000)
    shard.wall_s = NOON_S + 60
    assert said(shard, NOW_MS + 60_000 + REST_GRAIN_MS) == []
    assert leases(shard) == (1, FIRST_LEASE_UNITS)
    assert spoken(shard, NOW_MS + REST_MS, 0) == [("acme", limit_of(account, "month").period.start_s - NOON_S, 0, 0, 0)]
    assert (leases(shard), shard.busy) == ((0, 0), False)


def test_what_rests_is_not_reported_with_what_is_used_beside_it() -> None:
    shard = exchange(Terms(lease_rest_ms=REST_MS))
    shard.wall_s = NOON_S
    said(shard, NOW_MS)
    account = known(
        shard, plan(limit(LARGE, name="month", period="month"), limit(LARGE, name="other", metric="tokens"))
    )
    both = RouteRule(name="both", costs={"api": 1, "tokens": 1})
    for _, state, _ in account.charge(both, "", "", NOON_S).limits:
        state.wait_for(1)
    shard.touch(account)
    said(shard, NOW_MS, FIRST_LEASE_UNITS)
    asks(shard, "acme")
    message, _ = composed(shard, NOW_MS + 1)
    assert [one.name for part in message.parts for one in part.leases] == ["month"]


def test_what_rests_is_forfeited_with_the_rest_when_redis_was_away_for_too_long() -> None:
    shard = rested("acme")
    assert not shard.spendable(NOW_MS + shard.terms.reclaim_after_ms)
    assert leases(shard) == (0, 0)
    assert said(shard, NOW_MS + shard.terms.reclaim_after_ms) == ["acme"]


def test_a_new_generation_hears_of_what_rests() -> None:
    shard = rested("acme")
    message, sent = composed(shard, NOW_MS + 1)
    applied(shard, message, sent, reply(message, generation="g2"), NOW_MS + 1, NOW_MS + 1)
    assert said(shard, NOW_MS + 2) == ["acme"]


def test_a_stop_returns_what_rests() -> None:
    shard = rested("acme")
    shard.return_leases()
    assert said(shard, NOW_MS + 1) == ["acme"]
    assert not shard.pressing


def test_a_stopping_writer_lays_nothing_to_rest_that_was_asked_for_before() -> None:
    """It looks idle then, and what rests could be spent after its retirement has freed it in Redis."""
    shard = exchange(Terms(lease_rest_ms=REST_MS))
    shard.wall_s = NOON_S
    said(shard, NOW_MS)
    account = Account(plan(LARGE), shard)
    [(_, state, _)] = account.charge(ONE, "", "", NOON_S).limits
    state.wait_for(1)
    shard.touch(account)
    message, sent = composed(shard, NOW_MS)
    shard.return_leases()
    applied(shard, message, sent, reply(message, lease(FIRST_LEASE_UNITS)), NOW_MS, NOW_MS)
    assert (state.left, bool(shard.resting), shard.pressing) == (FIRST_LEASE_UNITS, False, True)
    assert said(shard, NOW_MS) == ["acme"]
    assert (state.left, shard.pressing) == (0, False)


def test_leases_that_nobody_uses_go_back_a_few_at_a_time() -> None:
    shard = rested(*(f"t{number}" for number in range(WOKEN_PER_SYNC + 20)))
    said(shard, NOW_MS + REST_MS // 2)
    assert len(said(shard, NOW_MS + REST_MS)) == WOKEN_UNUSED
    assert len(said(shard, NOW_MS + REST_MS)) == WOKEN_UNUSED


def test_no_more_wake_at_once_than_a_message_has_room_for() -> None:
    shard = rested(*(f"t{number}" for number in range(WOKEN_PER_SYNC + 21)))
    said(shard, NOW_MS + REST_MS // 2)
    asks(shard, "t0")
    assert len(said(shard, NOW_MS + REST_MS)) == 1 + WOKEN_PER_SYNC
    asks(shard, "t0")
    assert len(said(shard, NOW_MS + REST_MS)) == 1 + 20


def test_who_waited_for_a_lease_has_it_although_somebody_was_short_of_the_tenant_a_moment_ago() -> None:
    """As in the first seconds of a minute in which there is plenty, after one that was used up."""
    shard = rested("acme", "other")
    owner = known(shard, plan(LARGE, tenant="late"))
    [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
    state.wait_for(1)
    shard.touch(owner)
    said(shard, NOW_MS + 1, FIRST_LEASE_UNITS, called=("late", "acme"))
    assert state.left == FIRST_LEASE_UNITS
    assert leases(shard) == (2, 2 * FIRST_LEASE_UNITS)
    said(shard, NOW_MS + 2, called=("late",))
    assert state.left == 0


def test_who_is_laid_to_rest_again_rests_once() -> None:
    shard = rested("acme", "other")
    account = shard.accounts["acme"]
    for turn in range(2):
        shard.touch(account)
        assert said(shard, NOW_MS + turn, FIRST_LEASE_UNITS) == ["acme"]
    assert leases(shard) == (2, 2 * FIRST_LEASE_UNITS)
    assert [len(due) for _, due in shard.resting._due.values()] == [2]
    assert sorted(said(shard, NOW_MS + REST_MS)) == ["acme", "other"]
    assert not shard.resting


def test_who_woke_and_gave_all_up_may_rest_again_until_the_same_time() -> None:
    shard = rested("acme")
    account = shard.accounts["acme"]
    shard.touch(account)
    composed(shard, NOW_MS + 1)
    shard.return_leases()
    shard.closing = False
    shard.touch(account)
    [state] = account.limits.values()
    state.wait_for(1)
    said(shard, NOW_MS + 2, FIRST_LEASE_UNITS)
    assert leases(shard) == (1, FIRST_LEASE_UNITS)
    assert said(shard, NOW_MS + REST_MS) == ["acme"]


def test_leases_of_messages_a_moment_apart_are_shared_while_they_rest() -> None:
    shard = rested("acme")
    later = known(shard, plan(LARGE, tenant="later"))
    [(_, state, _)] = later.charge(ONE, "", "", NOON_S).limits
    state.wait_for(1)
    shard.touch(later)
    said(shard, NOW_MS + REST_GRAIN_MS - 1, FIRST_LEASE_UNITS)
    assert state.lease.shared
    assert state.lease is limit_of(shard.accounts["acme"], state.id).lease
    assert sorted(said(shard, NOW_MS + REST_MS)) == ["acme", "later"]


def test_what_rests_to_the_end_of_its_minute_does_not_wake_before() -> None:
    shard = rested()
    account = known(shard, plan(MINUTE))
    shard.wall_s = NOON_S + 50
    [(_, state, _)] = account.charge(ONE, "", "", shard.wall_s).limits
    state.wait_for(1)
    shard.touch(account)
    said(shard, NOW_MS + 1, FIRST_LEASE_UNITS)
    known(shard, plan(MINUTE, tenant="other"))
    for now_ms, told in ((NOW_MS + 10_001, ["other"]), (NOW_MS + 10_001 + REST_GRAIN_MS, ["other", "acme"])):
        shard.wall_s = NOON_S + 60
        asks(shard, "other", wall_s=shard.wall_s)
        assert said(shard, now_ms, FIRST_LEASE_UNITS) == told
