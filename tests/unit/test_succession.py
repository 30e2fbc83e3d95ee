"""Leases of a second or minute that are asked for before it begins."""

from __future__ import annotations

import pytest

from sidecar.enforcement.account import Account
from sidecar.enforcement.exchange import LIMITS_PER_SYNC, ShardExchange
from sidecar.enforcement.lease import REST_GRAIN_MS
from sidecar.enforcement.limit_state import IDLE_AFTER_MS, LimitState
from sidecar.enforcement.succession import AHEAD_S
from sidecar.enforcement.survey import leases
from sidecar.enforcement.terms import Terms
from sidecar.store.messages import SyncMessage
from tests.unit.tenants import HARD, NOON_S, ONE, applied, composed, exchange, lease, limit, limit_of, plan, reply

PER_MINUTE = limit(HARD, period="minute")
END_S = NOON_S + 60
NOW_MS = 1_000_000


def synced(shard: ShardExchange, now_s: int, *units: int, ms: int = 0) -> SyncMessage:
    """A call at that time (wall), which grants leases of so many units, in the order in which they are asked for."""
    now_ms = NOW_MS + (now_s - NOON_S) * 1000 + ms
    shard.wall_s = now_s
    message, sent = composed(shard, now_ms)
    granted = [lease(units[position] if position < len(units) else 0) for position in range(len(sent[0].limits))]
    applied(shard, message, sent, reply(message, *granted), now_ms, now_ms)
    return message


def said(message: SyncMessage) -> list[tuple[str, int, int, int]]:
    """Of each lease in a message: limit, start of its period, what is left, and what is wanted."""
    [part] = message.parts
    return [(one.id, one.start, one.left, one.want) for one in part.leases]


def spending(rule: object = PER_MINUTE, terms: Terms | None = None) -> tuple[ShardExchange, Account, LimitState]:
    """A tenant that holds fifty units of a minute of which it just spent one."""
    shard = exchange(terms)
    owner = Account(plan(rule), shard)  # type: ignore[arg-type]
    state = spent(owner, NOON_S)
    synced(shard, NOON_S)
    state.wait_for(1)
    spent(owner, NOON_S)
    synced(shard, NOON_S, 50)
    return shard, owner, spent(owner, NOON_S)


def spent(owner: Account, now_s: int) -> LimitState:
    [(_, state, _)] = owner.charge(ONE, "", "", now_s).limits
    state.spend(1)
    owner.exchange.touch(owner)
    return state


def ahead_of(state: LimitState) -> LimitState:
    assert state.lease.ahead is not None
    return state.lease.ahead


def test_no_request_waits_when_the_next_minute_begins() -> None:
    shard, owner, state = spending()
    message = synced(shard, END_S - 1, 49, 20)
    assert [one[:3] for one in said(message)] == [("calls", NOON_S, 49), ("calls", END_S, 0)]
    assert said(message)[1][3] > 0
    [(_, following, _)] = owner.charge(ONE, "", "", END_S).limits
    assert (following.period.start_s, following.left, following.lease.ahead) == (END_S, 20, None)
    assert (owner.departed, state.left) == ((state,), 0)
    following.spend(1)
    message = synced(shard, END_S, 0, 40)
    assert [one[:3] for one in said(message)] == [("calls", NOON_S, 0), ("calls", END_S, 19)]
    assert limit_of(owner, "calls").left == 40


@pytest.mark.parametrize(("before_s", "asked"), [(1, True), (AHEAD_S, True), (AHEAD_S + 1, False)])
def test_it_is_asked_for_in_the_last_seconds_before_the_minute_begins(before_s: int, *, asked: bool) -> None:
    shard, _, _ = spending()
    assert (len(said(synced(shard, END_S - before_s))) == 2) is asked


@pytest.mark.parametrize(
    "rule",
    [limit(PER_MINUTE, period="day"), limit(PER_MINUTE, stop=None, beyond="bill"), limit(PER_MINUTE, shadow=True)],
    ids=["long", "soft", "shadow"],
)
def test_only_small_limits_that_are_leased_are_asked_for(rule: object) -> None:
    shard, _, _ = spending(rule)
    assert len(said(synced(shard, END_S - 1))) == 1


def test_nobody_asks_for_who_does_not_spend() -> None:
    shard, owner, _ = spending()
    synced(shard, END_S - AHEAD_S - 1, 49)
    shard.touch(owner)
    assert len(said(synced(shard, END_S - 1, 49))) == 1


def test_a_clock_that_is_wrong_asks_for_no_minute_but_the_next() -> None:
    shard, _, _ = spending()
    assert len(said(synced(shard, NOON_S - 1))) == 1


def test_while_requests_come_it_is_kept_and_after_them_it_goes_back() -> None:
    shard, owner, state = spending(terms=Terms(lease_rest_ms=0))
    synced(shard, END_S - 1, 49, 20)
    spent(owner, END_S - 1)
    assert said(synced(shard, END_S - 1, 48, 20, ms=IDLE_AFTER_MS))[1][2] == 20
    assert [one[2:] for one in said(synced(shard, END_S - 1, 0, 0, ms=2 * IDLE_AFTER_MS))] == [(0, 0), (0, 0)]
    assert (ahead_of(state).left, shard.pressing, shard.forget(owner)) == (0, False, True)


def test_an_account_that_holds_some_does_not_rest_and_is_not_forgotten() -> None:
    shard, owner, state = spending()
    synced(shard, END_S - 1, 0, 20)
    assert (state.left, ahead_of(state).left) == (0, 20)
    assert (shard.pressing, bool(shard.resting), shard.forget(owner)) == (True, False, False)
    assert list(leases(shard)) == [0, 20]


def test_it_goes_on_alone_when_nothing_is_left_of_the_minute_before() -> None:
    """Without a word, as all of it is known; and it rests, or it would be in every message until it had been used."""
    shard, owner, _ = spending(limit(PER_MINUTE, stop=4000, included=4000))
    synced(shard, END_S - 1, 0, 20)
    assert (owner in shard.resting, shard.pressing) == (True, False)
    owner.charge(ONE, "", "", END_S)
    assert (limit_of(owner, "calls").period.start_s, limit_of(owner, "calls").left) == (END_S, 20)
    assert (owner.departed, shard.pressing) == ((), False)


def test_what_is_ahead_goes_on_without_a_word_while_nobody_asks() -> None:
    shard, owner, _ = spending(limit(PER_MINUTE, stop=4000, included=4000))
    synced(shard, END_S - 1, 7, 20)
    shard.wall_s = END_S
    message, sent = composed(shard, NOW_MS + 60_000 + REST_GRAIN_MS)
    assert (message.parts, sent) == ([], [])
    assert (limit_of(owner, "calls").period.start_s, limit_of(owner, "calls").left) == (END_S, 20)
    assert (limit_of(owner, "calls").lease.shared, owner in shard.resting, list(leases(shard))) == (True, True, [20])


def test_no_more_than_an_eighth_of_the_cap_is_asked_for_ahead_however_often() -> None:
    shard, owner, state = spending(limit(PER_MINUTE, stop=4000, included=4000))
    wanted = []
    for before_s in (6, 5, 4, 3, 2, 1):
        state.left = 2000
        state.spend(1000)
        shard.touch(owner)
        wanted += [one[3] for one in said(synced(shard, END_S - before_s, 1000, 500))[1:]]
    assert wanted == [4000 // 8, 0, 0, 0]


def test_what_was_spent_of_it_before_the_clock_stepped_back_is_told_with_it() -> None:
    """Redis may have lost its state meanwhile, and would give others what this writer has spent."""
    shard, owner, _ = spending()
    spent(owner, END_S)
    synced(shard, END_S)
    spent(owner, END_S - 1)
    [part] = synced(shard, END_S - 1).parts
    assert [(one.start, one.cumulative) for one in part.leases] == [(NOON_S, 4), (END_S, 1)]


def test_it_is_given_up_with_all_others() -> None:
    shard, _, state = spending()
    synced(shard, END_S - 1, 49, 20)
    assert not shard.spendable(NOW_MS + 59_000 + shard.terms.reclaim_after_ms)
    assert (state.left, ahead_of(state).left) == (0, 0)
    assert [one[2] for one in said(synced(shard, END_S - 1))] == [0, 0]


def test_nothing_is_asked_for_that_begins_after_the_end_of_the_process() -> None:
    shard, _, _ = spending()
    shard.return_leases()
    assert len(said(synced(shard, END_S - 1))) == 1


def test_a_lost_call_asks_again_and_knows_nothing_of_a_lease() -> None:
    shard, _, state = spending()
    shard.wall_s = END_S - 1
    _, sent = composed(shard, NOW_MS + 59_000)
    shard.undo(sent)
    assert not ahead_of(state).known
    assert len(said(synced(shard, END_S - 1, 49, 20))) == 2
    assert ahead_of(state).left == 20


def test_after_a_loss_of_redis_it_is_said_what_is_held_of_it() -> None:
    shard, owner, state = spending()
    synced(shard, END_S - 1, 49, 20)
    shard.touch(owner)
    message, sent = composed(shard, NOW_MS + 59_100)
    applied(
        shard, message, sent, reply(message, lease(49), lease(20), generation="g2"), NOW_MS + 59_100, NOW_MS + 59_100
    )
    assert not ahead_of(state).known
    assert [one[2] for one in said(synced(shard, END_S - 1))] == [49, 20]


@pytest.mark.parametrize("change", [{"stop": 50, "included": 50}, {"stop": 200, "included": 200}, {"metric": "tokens"}])
def test_under_another_rule_it_goes_back_and_is_asked_for_anew(change: dict[str, object]) -> None:
    shard, owner, state = spending()
    synced(shard, END_S - 1, 49, 20)
    ahead = ahead_of(state)
    owner.adopt(plan(limit(PER_MINUTE, **change), rev=2))
    assert ahead in owner.departed
    assert (ahead.left, state.lease.ahead, owner.touched) == (0, None, True)
    assert ("calls", END_S, 0, 0) in said(synced(shard, END_S - 1))


def test_who_asks_anew_speaks_for_what_goes_back() -> None:
    """Reported after the new lease, or in another message, it would give back what is being spent."""
    shard, owner, state = spending()
    synced(shard, END_S - 1, 49, 20)
    ahead = ahead_of(state)
    owner.adopt(plan(limit(PER_MINUTE, stop=200, included=200), rev=2))
    spent(owner, END_S - 1)
    shard.wall_s = END_S - 1
    message, _ = composed(shard, NOW_MS + 59_200)
    assert owner.replaced(ahead)
    assert [one[:3] for one in said(message)] == [("calls", NOON_S, 48), ("calls", END_S, 0)]


def test_what_was_spent_of_a_minute_is_told_whoever_is_in_its_place() -> None:
    shard, owner, state = spending()
    owner.adopt(plan(limit(PER_MINUTE, metric="tokens"), rev=2))
    owner.adopt(plan(PER_MINUTE, rev=3))
    spent(owner, NOON_S)
    assert state in owner.departed
    assert owner.replaced(state)
    assert [one.cumulative for one in composed(shard, NOW_MS)[0].parts[0].leases] == [4]


def test_a_minute_that_comes_back_is_spoken_of_once_however_much_there_is_to_say() -> None:
    """Who waits comes first in a full message, so what departed would give back afterwards what they were granted."""
    shard = exchange()
    owner = Account(plan(limit(PER_MINUTE, scope="user")), shard)
    for now_s in (END_S, END_S - 1, END_S):  # a clock that steps back and on again
        for number in range(LIMITS_PER_SYNC + 1):
            [(_, state, _)] = owner.charge(ONE, "", f"u{number}", now_s).limits
            state.spend_unleased(3 if now_s == END_S else 0)
            state.wait_for(1)
    shard.touch(owner)
    told = [
        one
        for message in (synced(shard, END_S, ms=ms) for ms in range(3))
        for one in message.parts[0].leases
        if one.start == END_S and not one.left
    ]
    assert {one.cumulative for one in told} == {6}


def test_who_speaks_for_what_departed_is_not_forgotten_before_redis_has_heard_it() -> None:
    """Where a message is full, it may take another one until it does."""
    rule = limit(HARD, scope="user")
    shard = exchange()
    owner = Account(plan(rule), shard)
    [(_, state, _)] = owner.charge(ONE, "", "u1", NOON_S).limits
    state.wait_for(1)
    shard.touch(owner)
    synced(shard, NOON_S, 20)
    owner.adopt(plan(PER_MINUTE, rev=2))
    owner.adopt(plan(rule, rev=3))
    for user in ("u1", *(f"who waits {number}" for number in range(LIMITS_PER_SYNC))):
        [(_, state, _)] = owner.charge(ONE, "", user, NOON_S).limits
        state.wait_for(user != "u1")
    assert "calls:u1" not in {one[0] for one in said(synced(shard, NOON_S))}
    owner.adopt(plan(rule, rev=4))
    assert "calls:u1" in {one[0] for one in said(synced(shard, NOON_S, ms=1))}


def test_after_two_minutes_it_is_none_of_the_current_one() -> None:
    shard, owner, state = spending()
    synced(shard, END_S - 1, 49, 20)
    ahead = ahead_of(state)
    [(_, later, _)] = owner.charge(ONE, "", "", END_S + 60).limits
    assert (later.left, owner.departed, ahead.left) == (0, (ahead, state), 0)


def test_every_users_is_asked_for_within_the_bounds_of_a_message() -> None:
    shard = exchange()
    owner = Account(plan(limit(PER_MINUTE, scope="user")), shard)
    for number in range(LIMITS_PER_SYNC):
        [(_, state, _)] = owner.charge(ONE, "", f"u{number}", END_S - 1).limits
        state.left = 30
        state.spend(1)
    shard.touch(owner)
    assert len(said(synced(shard, END_S - 1))) == LIMITS_PER_SYNC
    assert shard.backlogged
