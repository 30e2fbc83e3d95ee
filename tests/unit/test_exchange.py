"""One writer's side of the sync: what a message says, and which replies are believed."""

from __future__ import annotations

import pytest

from sidecar.catalogue.model import RouteRule
from sidecar.enforcement.account import Account
from sidecar.enforcement.exchange import ACKNOWLEDGED_KEPT_MS, LIMITS_PER_SYNC, TENANTS_PER_SYNC, ShardExchange
from sidecar.enforcement.limit_state import IDLE_AFTER_MS, LimitState
from sidecar.enforcement.sent import Sent
from sidecar.store.messages import LeaseReply, SyncMessage
from sidecar.usage.window import Mark, Window
from tests.unit.tenants import HARD, NOON_S, ONE, PLAN, applied, composed, exchange, lease, limit, plan, reply

HOUR = NOON_S // 3600
NOW_MS = 1_000_000


def touched(shard: ShardExchange, tenant: str = "acme", units: int = 1) -> tuple[Account, LimitState, Window]:
    """A tenant that counted ``units``, as the enforcer leaves it."""
    owner = Account(plan(tenant=tenant), shard)
    [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
    window = shard.window(owner, ("api", owner.period(NOON_S), HOUR))
    count(owner, window, units)
    return owner, state, window


def count(owner: Account, window: Window, units: int) -> None:
    window.view[window.index] += units
    owner.exchange.touch(owner)


def exchanged(shard: ShardExchange, now_ms: int, *leases: LeaseReply, generation: str = "g1") -> SyncMessage:
    """A call that is answered at once."""
    message, sent = composed(shard, now_ms)
    applied(shard, message, sent, reply(message, *leases, generation=generation), now_ms, now_ms)
    return message


def granted(shard: ShardExchange, units: int = 50) -> tuple[Account, LimitState, Window]:
    """A tenant with a lease in hand."""
    owner, state, window = touched(shard)
    exchanged(shard, NOW_MS, lease(0))  # learns the generation
    state.wait_for(1)
    shard.touch(owner)
    exchanged(shard, NOW_MS, lease(units))
    assert state.left == units
    return owner, state, window


def test_a_message_is_a_snapshot_of_what_was_counted() -> None:
    shard = exchange()
    exchanged(shard, NOW_MS)
    owner, _, window = touched(shard, units=5)
    message, sent = composed(shard, NOW_MS)
    [part] = message.parts
    assert part.windows == [("api", owner.period(NOON_S), HOUR, 5)]
    count(owner, window, 2)
    applied(shard, message, sent, reply(message, lease(0)), NOW_MS, NOW_MS)
    assert (window.acknowledged, window.dirty) == (5, True)
    assert exchanged(shard, NOW_MS).parts[0].windows[0][3] == 7
    assert (window.acknowledged, window.dirty) == (7, False)


def test_what_a_lost_message_said_is_said_again() -> None:
    shard = exchange()
    _, _, window = touched(shard, units=5)
    _, sent = composed(shard, NOW_MS)
    shard.undo(sent)
    assert window.dirty
    assert exchanged(shard, NOW_MS, lease(0)).parts[0].windows[0][3] == 5


def test_sequences_only_grow_and_what_was_accepted_is_acknowledged() -> None:
    shard = exchange()
    granted(shard)
    first = exchanged(shard, NOW_MS, lease(50))
    second, _ = composed(shard, NOW_MS)
    assert second.sequence == first.sequence + 1
    assert (second.generation, second.acknowledged) == ("g1", first.sequence)


def test_a_refused_sequence_is_never_acknowledged() -> None:
    """Redis does not store it; acknowledged, it would look like one that Redis lost, and begin a new generation."""
    shard = exchange()
    granted(shard)
    accepted = exchanged(shard, NOW_MS, lease(50))
    message, sent = composed(shard, NOW_MS)
    applied(shard, message, sent, reply(message, lease(50), accepted=False), NOW_MS, NOW_MS)
    assert composed(shard, NOW_MS)[0].acknowledged == accepted.sequence


def test_an_acknowledgement_is_forgotten_before_redis_may_forget_the_writer() -> None:
    shard = exchange()
    granted(shard)
    assert composed(shard, NOW_MS + ACKNOWLEDGED_KEPT_MS + 1)[0].acknowledged == 0


@pytest.mark.parametrize(("late_ms", "used"), [(9_999, True), (10_000, False)])
def test_a_reply_counts_only_within_the_time_a_lease_lives(late_ms: int, used: bool) -> None:
    shard = exchange()
    _, state, _ = granted(shard, 10)
    message, sent = composed(shard, NOW_MS)
    applied(shard, message, sent, reply(message, lease(40)), NOW_MS, NOW_MS + late_ms)
    assert (state.left, shard.replies_unused) == ((40, 0) if used else (10, 1))


def test_a_superseded_reply_is_not_used() -> None:
    shard = exchange()
    _, state, _ = granted(shard, 10)
    message, sent = composed(shard, NOW_MS)
    composed(shard, NOW_MS)
    applied(shard, message, sent, reply(message, lease(40)), NOW_MS, NOW_MS)
    assert (state.left, shard.replies_unused) == (10, 1)


def test_leases_may_be_spent_from_the_sending_of_the_last_call_on() -> None:
    shard = exchange()
    _, state, _ = granted(shard)
    message, sent = composed(shard, NOW_MS + 5_000)
    applied(shard, message, sent, reply(message, lease(50)), NOW_MS + 5_000, NOW_MS + 9_000)
    assert shard.spendable(NOW_MS + 14_999)
    assert not shard.spendable(NOW_MS + 15_000)
    assert state.left == 50
    assert not shard.spendable(NOW_MS + 65_000)
    assert state.left == 0


def test_a_lease_that_ran_out_in_flight_comes_back_only_with_the_reply() -> None:
    shard = exchange()
    _, state, _ = granted(shard)
    message, sent = composed(shard, NOW_MS + 59_000)
    assert not shard.spendable(NOW_MS + 60_000)
    assert state.left == 0
    applied(shard, message, sent, reply(message, lease(30)), NOW_MS + 59_000, NOW_MS + 60_001)
    assert state.left == 30
    assert shard.spendable(NOW_MS + 60_002)


def test_an_unaccepted_reply_renews_nothing() -> None:
    shard = exchange()
    _, state, _ = granted(shard)
    message, sent = composed(shard, NOW_MS + 1_000)
    applied(shard, message, sent, reply(message, lease(70), accepted=False), NOW_MS + 1_000, NOW_MS + 1_000)
    assert state.left == 50
    assert not shard.spendable(NOW_MS + 10_000)


def test_a_new_generation_makes_everything_unsaid() -> None:
    shard = exchange()
    _, state, window = granted(shard)
    assert (window.acknowledged, window.dirty) == (1, False)
    message, sent = composed(shard, NOW_MS)
    applied(shard, message, sent, reply(message, lease(0), generation="g2", granting=False), NOW_MS, NOW_MS)
    assert shard.generation_changes == 1
    assert (window.acknowledged, window.version, window.dirty) == (0, 0, True)
    assert state.left == 50
    again, _ = composed(shard, NOW_MS)
    assert (again.generation, again.acknowledged) == ("g2", 0)
    assert again.parts[0].windows[0][3] == 1
    assert again.parts[0].leases[0].left == 50


def test_windows_confirmed_within_a_second_wait_for_the_ledger_together() -> None:
    shard = exchange()
    exchanged(shard, NOW_MS)
    windows: list[Window] = []
    for now_ms, version in ((1, 3), (1_000, 5), (1_001, 9)):
        owner, _, window = touched(shard, f"t{version}")
        windows.append(window)
        message, sent = composed(shard, NOW_MS + now_ms)
        applied(shard, message, sent, reply(message, lease(0), version=version), NOW_MS + now_ms, NOW_MS + now_ms)
        assert owner.windows.values() == (window,)
    assert [window.version for window in windows] == [5, 5, 9]
    assert [window.in_ledger(4) for window in windows] == [False, False, False]
    assert [window.in_ledger(5) for window in windows] == [True, True, False]


def test_holders_beyond_one_message_wait_for_the_next_turn() -> None:
    """Said again at once, they would be said again and again until their leases go back."""
    shard = exchange()
    exchanged(shard, NOW_MS)
    many = [limit(HARD, name=f"l{number}", included=1_000, stop=1_000) for number in range(5)]
    for number in range(LIMITS_PER_SYNC // 5 + 10):
        owner = Account(plan(*many, tenant=f"t{number}"), shard)
        for _, state, _ in owner.charge(ONE, "", "", NOON_S).limits:
            state.wait_for(1)
        shard.touch(owner)
    exchanged(shard, NOW_MS, *[lease(50)] * 5)
    assert shard.backlogged
    exchanged(shard, NOW_MS + 1, *[lease(50)] * 5)
    message = exchanged(shard, NOW_MS + 2, *[lease(50)] * 5)
    assert (len(message.parts) * 5, shard.backlogged) == (LIMITS_PER_SYNC, False)


def test_a_new_generation_counts_its_changes_from_the_beginning() -> None:
    shard = exchange()
    _, _, window = granted(shard)
    message, sent = composed(shard, NOW_MS)
    changed = reply(message, lease(0), generation="g2", version=700)
    applied(shard, message, sent, changed, NOW_MS, NOW_MS)
    message, sent = composed(shard, NOW_MS + 1)
    applied(shard, message, sent, reply(message, lease(0), generation="g2", version=4), NOW_MS + 1, NOW_MS + 1)
    assert (window.version, window.dirty) == (4, False)


def test_a_part_without_effect_is_said_again_with_the_new_snapshot() -> None:
    shard = exchange()
    owner, state, window = granted(shard)
    count(owner, window, 3)
    message, sent = composed(shard, NOW_MS)
    applied(shard, message, sent, reply(message, revision=2), NOW_MS, NOW_MS)
    assert shard.stale == [(owner, b"")]
    assert (state.left, window.dirty) == (50, True)
    owner.adopt(plan(limit(HARD, stop=40, included=40), rev=2))
    part = composed(shard, NOW_MS)[0].parts[0]
    assert (part.revision, part.windows[0][3], part.leases[0].left) == (2, 4, 0)


def test_a_tenant_that_redis_does_not_know_is_looked_up() -> None:
    shard = exchange()
    owner, _, _ = granted(shard)
    message, sent = composed(shard, NOW_MS)
    applied(shard, message, sent, reply(message, lease(0), revision=-1), NOW_MS, NOW_MS)
    assert shard.stale == [(owner, b"")]


def test_a_reply_from_before_a_lower_cap_gives_nothing_back() -> None:
    shard = exchange()
    owner, state, _ = granted(shard)
    message, sent = composed(shard, NOW_MS)
    owner.adopt(plan(limit(HARD, stop=10, included=10), rev=2))
    assert state.left == 0
    applied(shard, message, sent, reply(message, lease(80)), NOW_MS, NOW_MS)
    assert state.left == 0
    assert composed(shard, NOW_MS)[0].parts[0].leases[0].left == 0


@pytest.mark.parametrize("what", ["to end", "ended", "slept"])
def test_what_an_answer_brings_after_leases_were_given_up_is_not_spent(what: str) -> None:
    """Decisions come between two tenants of an answer; so may the end of the process, or a sleep beyond reclaiming."""
    shard = exchange()
    exchanged(shard, NOW_MS)
    states = [touched(shard, tenant)[1] for tenant in ("a", "b")]
    message, sent = composed(shard, NOW_MS)
    coming = shard.applied(message, sent, reply(message, lease(80)), NOW_MS, NOW_MS)
    next(coming)
    assert [state.left for state in states] == [80, 0]
    if what == "to end":
        shard.return_leases()
    elif what == "ended":
        states[0].forfeit()
        shard.ended = True
    else:
        assert not shard.spendable(NOW_MS + shard.terms.reclaim_after_ms)
    assert [one.account.tenant for one in coming] == ["b"]
    assert [state.left for state in states] == [0, 0]
    assert [one.left for part in composed(shard, NOW_MS)[0].parts for one in part.leases] == [0, 0]


def test_a_new_generation_is_taken_over_in_one_go() -> None:
    """Or windows whose numbers are of the old one would be held against the ledger's progress in the new one."""
    shard = exchange()
    exchanged(shard, NOW_MS)
    for tenant in ("a", "b"):
        touched(shard, tenant)
    message, sent = composed(shard, NOW_MS)
    assert not list(shard.applied(message, sent, reply(message, lease(80), generation="g2"), NOW_MS, NOW_MS))
    assert shard.generation == "g2"


def test_a_departed_limit_is_reported_until_redis_has_heard_it() -> None:
    shard = exchange()
    owner, state, _ = granted(shard)
    owner.adopt(plan(limit(HARD, name="other"), rev=2))
    for _ in range(2):
        message, sent = composed(shard, NOW_MS)
        assert [(one.name, one.left) for one in message.parts[0].leases] == [("calls", 0)]
        shard.undo(sent)
    message, sent = composed(shard, NOW_MS)
    applied(shard, message, sent, reply(message, lease(0), revision=2), NOW_MS, NOW_MS)
    assert owner.departed == ()
    assert state not in owner.limits.values()


def test_a_limit_that_departed_asks_for_nothing_even_if_somebody_waited() -> None:
    """Units granted for it would stay aside: nothing is reported of it once Redis has heard that it departed."""
    shard = exchange()
    owner, state, _ = granted(shard)
    state.wait_for(state.left + 1)
    owner.charge(ONE, "", "", NOON_S + 86_400)
    report = composed(shard, NOW_MS)[0].parts[0].leases[0]
    assert (report.start, report.left, report.need, report.want) == (state.period.start_s, 0, 0, 0)


def test_a_day_that_departed_does_not_give_back_the_lease_of_a_month_that_began_with_it() -> None:
    """Redis keeps both under one key: with the month's limit in use, the month's report speaks for it."""
    shard = exchange()
    owner, day, _ = granted(shard)
    owner.adopt(plan(limit(HARD, period="month"), rev=2))
    [(_, month, _)] = owner.charge(ONE, "", "", NOON_S).limits
    assert (month.id, month.period.start_s) == (day.id, day.period.start_s)
    [report] = composed(shard, NOW_MS)[0].parts[0].leases
    assert (report.end_ms, report.left) == (month.period.end_s * 1000, 0)
    assert owner.departed == ()


def test_an_idle_lease_is_given_back() -> None:
    shard = exchange()
    _, state, _ = granted(shard)
    message, _ = composed(shard, NOW_MS + IDLE_AFTER_MS + 1)
    assert (state.left, message.parts[0].leases[0].left) == (0, 0)


def test_a_closing_writer_asks_for_nothing_and_returns_all() -> None:
    shard = exchange()
    _, state, _ = granted(shard)
    shard.return_leases()
    [report] = composed(shard, NOW_MS)[0].parts[0].leases
    assert (state.left, report.left, report.want) == (0, 0, 0)


@pytest.mark.parametrize("ended", [False, True])
def test_who_stops_does_not_wait_until_what_it_refused_in_an_outage_is_granted_again(*, ended: bool) -> None:
    """Else it tells Redis the same again and again, for as long as a restored shard grants nothing."""
    shard = exchange()
    _, state, _ = granted(shard)
    state.own_lease().refused = True

    def held_off() -> None:
        message, sent = composed(shard, NOW_MS)
        applied(shard, message, sent, reply(message, lease(0), granting=False), NOW_MS, NOW_MS)

    held_off()
    assert shard.pressing  # to find out when the outage is over
    shard.return_leases()
    shard.ended = ended
    held_off()
    assert not shard.pressing


def test_what_is_granted_after_the_last_report_is_never_spent_but_what_was_counted_is_told() -> None:
    """The writer's retirement frees it in Redis, and others are granted it."""
    shard = exchange()
    exchanged(shard, NOW_MS)
    _, state, window = touched(shard)
    state.wait_for(1)
    message, sent = composed(shard, NOW_MS)
    shard.return_leases()
    assert not shard.pressing
    shard.ended = True
    applied(shard, message, sent, reply(message, lease(1)), NOW_MS, NOW_MS)
    assert (state.left, window.dirty) == (0, False)


def test_leases_of_which_the_last_report_comes_between_two_tenants_of_an_answer_are_not_taken() -> None:
    shard = exchange()
    exchanged(shard, NOW_MS)
    states = [touched(shard, tenant)[1] for tenant in ("t1", "t2")]
    message, sent = composed(shard, NOW_MS)
    answer = shard.applied(message, sent, reply(message, lease(5)), NOW_MS, NOW_MS)
    next(answer)
    shard.ended = True
    assert list(answer) == sent[1:]
    assert [state.left for state in states] == [5, 0]


def test_more_tenants_than_fit_take_turns() -> None:
    shard = exchange()
    for number in range(TENANTS_PER_SYNC + 10):
        touched(shard, f"t{number}")
    said = [(len(composed(shard, NOW_MS)[0].parts), shard.backlogged) for _ in range(2)]
    assert said == [(TENANTS_PER_SYNC, True), (10, False)]


@pytest.mark.parametrize("limits", [1, 5])
def test_more_tenants_than_fit_are_not_told_of_without_a_pause_while_redis_refuses_it(limits: int) -> None:
    """What they wait for is a newer snapshot."""
    shard = exchange()
    several = [limit(HARD, name=f"l{number}", included=1_000, stop=1_000) for number in range(limits)]
    for number in range(TENANTS_PER_SYNC + 10):
        owner = Account(plan(*several, tenant=f"t{number}"), shard)
        owner.charge(ONE, "", "", NOON_S)
        shard.touch(owner)
    calls = 0
    while shard.backlogged or not calls:
        message, sent = composed(shard, NOW_MS)
        applied(shard, message, sent, reply(message, revision=2), NOW_MS, NOW_MS)
        calls += 1
        assert calls <= TENANTS_PER_SYNC * limits // LIMITS_PER_SYNC + 2
    assert calls > 1


def test_holders_beyond_one_message_take_turns() -> None:
    shard = exchange()
    for number in range(TENANTS_PER_SYNC + 10):
        touched(shard, f"t{number}")
    for _ in range(4):
        message, sent = composed(shard, NOW_MS)
        leases = [lease(50)] if shard.generation else [lease(0)]
        applied(shard, message, sent, reply(message, *leases), NOW_MS, NOW_MS)
    seen = {part.tenant for _ in range(2) for part in exchanged(shard, NOW_MS, lease(50)).parts}
    assert len(seen) == TENANTS_PER_SYNC + 10


def test_a_limit_waits_for_the_windows_that_feed_it() -> None:
    """Reported without them, spent units would look unspent, and Redis would grant them again."""
    shard = exchange()
    per_user = limit(HARD, name="per_user", scope="user")
    owner = Account(plan(per_user), shard)
    units: dict[str, int] = {}
    for number in range(LIMITS_PER_SYNC + 40):
        charge = owner.charge(ONE, "", f"u{number}", NOON_S)
        for _, series, cost in charge.series:
            count(owner, shard.window(owner, (series, owner.period(NOON_S), HOUR)), cost)
            units[series] = units.get(series, 0) + cost
    told: dict[str, int] = {}
    for _ in range(3):
        [part] = composed(shard, NOW_MS)[0].parts
        told |= {series: value for series, _, _, value in part.windows}
        assert all(told[f"api@{one.id}"] == 1 for one in part.leases)
    assert told == units


def settled(shard: ShardExchange, window: Window, watermark: int) -> None:
    message, sent = composed(shard, NOW_MS)
    applied(shard, message, sent, reply(message, lease(0), watermark=watermark, hour=shard.hour), NOW_MS, NOW_MS)


def test_a_cell_is_kept_until_the_ledger_has_it_and_its_hours_are_over() -> None:
    shard = exchange()
    owner, _, window = touched(shard)
    charge = owner.charge(ONE, "", "", NOON_S)
    exchanged(shard, NOW_MS, lease(0))
    exchanged(shard, NOW_MS, lease(0))
    settled(shard, window, watermark=1)
    assert len(shard.kept) == 1
    assert owner.charge(ONE, "", "", NOON_S) is charge
    shard.hour += 2
    settled(shard, window, watermark=0)
    assert len(shard.kept) == 1
    settled(shard, window, watermark=1)
    assert (len(shard.kept), owner.windows.values()) == (0, ())
    assert owner.charge(ONE, "", "", NOON_S) is not charge
    assert shard.kept.freed_hour == HOUR


def test_a_clock_that_steps_back_over_the_hour_finds_its_cell_again() -> None:
    """A new cell would start from 0 again, and max would swallow what it counts."""
    shard = exchange()
    owner, _, window = touched(shard, units=5)
    exchanged(shard, NOW_MS, lease(0))
    exchanged(shard, NOW_MS, lease(0))
    shard.hour += 1
    settled(shard, window, watermark=1)
    assert shard.window(owner, window.id) is window


def test_what_is_not_in_the_ledger_does_not_keep_others() -> None:
    shard = exchange()
    old, _, stuck = touched(shard, "old")
    stuck.mark = Mark(99)
    for number in range(3):
        touched(shard, f"t{number}")
    exchanged(shard, NOW_MS, lease(0))
    exchanged(shard, NOW_MS, lease(0))
    count(old, stuck, 1)
    stuck.acknowledged = 0
    shard.hour += 2
    message, sent = composed(shard, NOW_MS)
    shard.undo(sent)
    sent_none: list[Sent] = []
    empty = SyncMessage("w1", message.sequence, "g1", 0, [])
    applied(shard, empty, sent_none, reply(empty, watermark=50, hour=shard.hour), NOW_MS, NOW_MS)
    assert list(old.windows.values()) == [stuck]
    assert len(shard.kept) == 1


def test_an_account_with_anything_left_to_say_is_not_forgotten() -> None:
    shard = exchange()
    owner, state, window = granted(shard)
    assert not shard.forget(owner)
    state.left = 0
    composed(shard, NOW_MS)
    assert not shard.forget(owner)
    idle = Account(PLAN, shard)
    assert shard.forget(idle)
    idle.has_children = True
    assert not shard.forget(idle)
    assert owner.windows.get(window.id) is window


def test_an_account_for_which_a_lease_is_on_its_way_is_not_forgotten() -> None:
    """Or a second account of the tenant would spend what the first one gives back."""
    shard = exchange()
    owner = Account(PLAN, shard)
    [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
    state.wait_for(1)
    shard.touch(owner)
    _, sent = composed(shard, NOW_MS)
    assert not owner.touched
    assert not shard.forget(owner)
    shard.undo(sent)
    assert not shard.forget(owner)


def test_a_soft_limit_is_counted_without_a_lease() -> None:
    shard = exchange()
    owner = Account(plan(limit(HARD, stop=None)), shard)
    [(_, state, _)] = owner.charge(RouteRule(name="two", costs={"api": 2}), "", "", NOON_S).limits
    state.spend_unleased(2)
    shard.touch(owner)
    [report] = composed(shard, NOW_MS)[0].parts[0].leases
    assert (report.left, report.need, report.want, report.cumulative) == (0, 0, 0, 0)


def test_a_failed_renewal_is_tried_again_with_the_next_report_and_not_with_each_request() -> None:
    shard = exchange()
    _, state, _ = granted(shard)
    message, sent = composed(shard, NOW_MS)
    shard.undo(sent)
    assert state.lease.renewing
    assert exchanged(shard, NOW_MS + 1, lease(50)).sequence > message.sequence
    assert not state.lease.renewing


def test_one_message_asks_for_the_next_minute_of_every_tenant_in_it() -> None:
    shard = exchange()
    owners = []
    for name in ("a", "b"):
        owner = Account(plan(limit(period="minute", included=800, stop=800), tenant=name), shard)
        [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
        state.left = 10
        state.spend(1)
        shard.touch(owner)
        owners.append(owner)
    shard.wall_s = NOON_S + 60
    message, _ = composed(shard, NOW_MS)
    begun = [[(report.start, report.want > 0) for report in part.leases] for part in message.parts]
    assert begun == [[(NOON_S, False), (NOON_S + 60, True)]] * 2


def busy_users(shard: ShardExchange, users: int, period: str = "minute") -> Account:
    """A tenant each of whose users has a lease, of the minute that is about to end."""
    owner = Account(plan(limit(period=period, scope="user", included=800, stop=800)), shard)
    for number in range(users):
        spent(owner, f"u{number}").left = 10
    shard.touch(owner)
    return owner


def spent(owner: Account, user: str) -> LimitState:
    """The limit of a user who has just spent a unit of it."""
    charge = owner.charge(ONE, "", user, NOON_S)
    for account, series, units in charge.series:
        window = owner.exchange.window(account, (series, account.period(NOON_S), NOON_S // 3600))
        window.view[window.index] += units
    [(_, state, _)] = charge.limits
    state.spend(1)
    return state


def test_the_minutes_of_many_users_go_on_with_as_many_messages_as_they_need() -> None:
    shard = exchange()
    exchanged(shard, NOW_MS)  # learns the generation
    owner = busy_users(shard, 4 * LIMITS_PER_SYNC)
    shard.wall_s = NOON_S + 60
    said = []
    while shard.pressing:
        message, sent = composed(shard, NOW_MS)
        leases = [lease(0)] * sum(len(part.leases) for part in message.parts)
        applied(shard, message, sent, reply(message, *leases), NOW_MS, NOW_MS)
        said += [one.start for part in message.parts for one in part.leases]
        assert len(owner.departed) <= LIMITS_PER_SYNC
    assert said.count(NOON_S) == said.count(NOON_S + 60) == 4 * LIMITS_PER_SYNC


def test_who_waits_is_in_the_next_message_however_many_others_have_something_to_say() -> None:
    shard = exchange()
    owner = busy_users(shard, 4 * LIMITS_PER_SYNC)
    shard.wall_s = NOON_S + 60
    [(_, state, _)] = owner.charge(ONE, "", "who waits", NOON_S + 60).limits
    state.wait_for(1)
    message, _ = composed(shard, NOW_MS)
    assert [one.id for one in message.parts[0].leases if one.need] == [state.id]
    assert len(message.parts[0].leases) == LIMITS_PER_SYNC


def answered(shard: ShardExchange, units: int, now_ms: int = NOW_MS, **changes: object) -> SyncMessage:
    """A call that grants so many units of each limit."""
    message, sent = composed(shard, now_ms)
    leases = [lease(units)] * sum(len(part.leases) for part in message.parts)
    applied(shard, message, sent, reply(message, *leases, **changes), now_ms, now_ms)  # type: ignore[arg-type]
    return message


def test_leases_beyond_a_message_that_are_only_held_wait_for_the_next_interval() -> None:
    """Or one message would follow the other without a pause for as long as users of one tenant hold so many."""
    shard = exchange()
    exchanged(shard, NOW_MS)  # learns the generation
    owner = busy_users(shard, LIMITS_PER_SYNC + 10)
    calls = 0
    while shard.backlogged or not calls:
        answered(shard, 10)
        calls += 1
        assert calls <= 3
    assert sum(state.left for state in owner.limits.values()) == 10 * (LIMITS_PER_SYNC + 10)
    assert shard.pressing


def test_leases_beyond_a_message_that_nobody_spends_of_go_back_without_a_pause() -> None:
    """Or those of ten thousand users would be kept from other writers for twenty seconds."""
    shard = exchange()
    exchanged(shard, NOW_MS)
    owner = busy_users(shard, 4 * LIMITS_PER_SYNC)
    for _ in range(4):
        answered(shard, 10)
    assert sum(state.left for state in owner.limits.values()) == 10 * 4 * LIMITS_PER_SYNC
    calls = 0
    while shard.backlogged or not calls:
        answered(shard, 0, NOW_MS + IDLE_AFTER_MS)
        calls += 1
    assert calls == 4
    assert not any(state.left for state in owner.limits.values())


@pytest.mark.parametrize("period", ["minute", "hour"])  # an hour's has windows, too
def test_users_that_spend_on_are_each_told_of_once_an_interval(period: str) -> None:
    """Or one message would follow the other without a pause for as long as more are active than one has room for."""
    shard = exchange()
    exchanged(shard, NOW_MS)
    owner = busy_users(shard, 4 * LIMITS_PER_SYNC, period)
    users = [state.id for state in owner.limits.values()]
    for at_ms in (NOW_MS, NOW_MS + 500):
        said: list[str] = []
        calls = 0
        while shard.backlogged or not calls:
            for user in users:
                spent(owner, user.partition(":")[2])
            shard.touch(owner)
            [part] = answered(shard, 10, at_ms).parts
            said += [one.id for one in part.leases]
            calls += 1
            assert calls <= 5
        assert set(said) == set(users)


def test_a_lease_that_runs_low_is_in_the_next_message_however_many_others_have_something_to_say() -> None:
    shard = exchange()
    exchanged(shard, NOW_MS)
    owner = busy_users(shard, 4 * LIMITS_PER_SYNC)
    low = list(owner.limits.values())[-1]
    low.own_lease().renewing = True
    [part] = composed(shard, NOW_MS)[0].parts
    assert part.leases[0].id == low.id


@pytest.mark.parametrize("accepted", [True, False])  # of a writer that retired nothing is
def test_what_departed_is_told_once_when_everything_was_reported(*, accepted: bool) -> None:
    shard = exchange()
    exchanged(shard, NOW_MS)
    owner = busy_users(shard, 3)
    answered(shard, 10)
    shard.return_leases()
    shard.ended = True
    owner.adopt(plan(limit(name="another"), rev=owner.rev))
    assert len(owner.departed) == 3
    answered(shard, 0, accepted=accepted)
    assert not owner.departed
    assert not shard.pressing
