"""Leases of which a writer does not speak for a while."""

from __future__ import annotations

import pytest

from sidecar.catalogue.snapshot import LimitRule
from sidecar.enforcement.account import Account
from sidecar.enforcement.exchange import WOKEN_PER_SYNC, ShardExchange
from sidecar.enforcement.lease import REST_GRAIN_MS
from sidecar.enforcement.limit_period import FIRST_LEASE_UNITS
from sidecar.enforcement.limit_state import IDLE_AFTER_MS
from sidecar.enforcement.terms import Terms
from tests.unit.tenants import HARD, NOON_S, ONE, exchange, known, lease, limit, limit_of, plan, reply

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
    message, sent = shard.compose(now_ms)
    leases = [lease(units, spent=spent)] * max((len(part.leases) for part in message.parts), default=0)
    shard.apply(message, sent, reply(message, *leases, called=list(called)), now_ms, now_ms)
    return [part.tenant for part in message.parts]


def leases(shard: ShardExchange) -> tuple[int, int]:
    """How many, and the units left in them."""
    left = [units for units in shard.leases() if units]
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


def test_a_lease_at_rest_goes_on_in_the_next_minute_but_not_for_ever() -> None:
    shard = rested("acme", rule=MINUTE)
    shard.wall_s = NOON_S + 59
    assert said(shard, NOW_MS + 59_000) == []
    shard.wall_s = NOON_S + 60
    message, sent = shard.compose(NOW_MS + 60_000)
    [part] = message.parts
    shard.apply(message, sent, reply(message, lease(0), lease(FIRST_LEASE_UNITS)), NOW_MS + 60_000, NOW_MS + 60_000)
    assert said(shard, NOW_MS + REST_MS - 1) == []
    assert said(shard, NOW_MS + REST_MS) == ["acme"]
    assert leases(shard) == (0, 0)
    assert [(one.start, one.left, one.want) for one in part.leases] == [
        (NOON_S, 0, 0),
        (NOON_S + 60, 0, FIRST_LEASE_UNITS),
    ]


def test_what_rests_is_forfeited_with_the_rest_when_redis_was_away_for_too_long() -> None:
    shard = rested("acme")
    assert not shard.spendable(NOW_MS + shard.terms.reclaim_after_ms)
    assert leases(shard) == (0, 0)
    assert said(shard, NOW_MS + shard.terms.reclaim_after_ms) == ["acme"]


def test_a_new_generation_hears_of_what_rests() -> None:
    shard = rested("acme")
    message, sent = shard.compose(NOW_MS + 1)
    shard.apply(message, sent, reply(message, generation="g2"), NOW_MS + 1, NOW_MS + 1)
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
    message, sent = shard.compose(NOW_MS)
    shard.return_leases()
    shard.apply(message, sent, reply(message, lease(FIRST_LEASE_UNITS)), NOW_MS, NOW_MS)
    assert (state.left, bool(shard.resting), shard.pressing) == (FIRST_LEASE_UNITS, False, True)
    assert said(shard, NOW_MS) == ["acme"]
    assert (state.left, shard.pressing) == (0, False)


def test_no_more_wake_at_once_than_a_message_has_room_for() -> None:
    shard = rested(*(f"t{number}" for number in range(WOKEN_PER_SYNC + 20)))
    said(shard, NOW_MS + REST_MS // 2)
    assert len(said(shard, NOW_MS + REST_MS)) == WOKEN_PER_SYNC
    assert not shard.ample
    assert len(said(shard, NOW_MS + REST_MS)) == 20


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
    assert sorted(said(shard, NOW_MS + REST_MS)) == ["acme", "other"]
    assert not shard.resting


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
    assert said(shard, NOW_MS + 10_001) == []
    assert said(shard, NOW_MS + 10_001 + REST_GRAIN_MS) == ["acme"]
