"""One limit at one writer: what it reports, and what it makes of the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sidecar.catalogue.snapshot import LimitRule
from sidecar.enforcement.lease import NO_LEASE, Lease
from sidecar.enforcement.limit_period import FIRST_LEASE_UNITS, FIRST_PART, limit_period
from sidecar.enforcement.limit_state import CALLED_RESERVE_MS, CONTENDED_FOR_MS, IDLE_AFTER_MS, LimitState
from sidecar.store.messages import LeaseReply

RULE = LimitRule(
    name="calls",
    metric="calls",
    period="month",
    scope="tenant",
    routes=(),
    included=1_000,
    stop=1_000,
    beyond="deny",
    grace_s=0,
    on_outage="closed",
    outage_units=0,
    shadow=False,
)
NOW_MS = 50_000


def granted(state: LimitState, now_ms: int) -> int:
    """Report, and have Redis grant all that is wanted; what is left then."""
    sent = state.report(now_ms, 2, 1_000_000)
    reply = LeaseReply(
        units=sent.left + sent.want, spent=state.used, held=sent.left + sent.want, over_ms=0, called=False
    )
    state.settle(sent, state.own, reply, now_ms, renewed=True)
    return state.left


def test_units_fetched_for_somebody_who_waits_are_still_there_when_it_is_his_turn() -> None:
    """Another tenant's request may have the shard synced again before the one who waited runs."""
    state = LimitState(limit_period(RULE, "calls", 0, 10_000_000, leased=True))
    state.wait_for(1)
    first = granted(state, NOW_MS)
    assert first >= 1
    assert granted(state, NOW_MS + 1) == first
    assert granted(state, NOW_MS + IDLE_AFTER_MS - 1) == first


def test_a_lease_that_nobody_spends_is_given_back() -> None:
    state = LimitState(limit_period(RULE, "calls", 0, 10_000_000, leased=True))
    state.wait_for(1)
    granted(state, NOW_MS)
    state.spend(1)
    granted(state, NOW_MS + 100)
    assert state.left > 0
    assert granted(state, NOW_MS + 100 + IDLE_AFTER_MS) == 0


def leased(**changes: Any) -> LimitState:
    state = LimitState(limit_period(RULE, "calls", 0, 10_000_000, leased=True))
    for name, value in changes.items():
        setattr(state.own_lease() if name in Lease.__slots__ else state, name, value)
    return state


def settled(state: LimitState, units: int, *, spent: int = 0, called: bool = False, need: int = 0) -> None:
    """A report that Redis answers with a lease of ``units``."""
    state.own_lease().need = need
    sent = state.report(NOW_MS, 2, 1_000_000)
    reply = LeaseReply(units=units, spent=spent, held=units, over_ms=0, called=called)
    state.settle(sent, state.own, reply, NOW_MS, renewed=True)


def test_what_was_spent_since_the_report_is_taken_off_the_grant() -> None:
    state = leased(left=10)
    sent = state.report(NOW_MS, 2, 1_000_000)
    own = state.own
    state.spend(4)
    state.settle(sent, own, LeaseReply(30, 100, 50, 0, called=False), NOW_MS, renewed=True)
    assert (state.left, state.used, state.lease.held_elsewhere) == (26, 104, 20)


def test_more_spent_since_than_granted_leaves_nothing_rather_than_a_debt() -> None:
    state = leased(left=10)
    sent = state.report(NOW_MS, 2, 1_000_000)
    own = state.own
    state.spend_unleased(40)
    state.settle(sent, own, LeaseReply(30, 0, 30, 0, called=False), NOW_MS, renewed=True)
    assert state.left == 0


@pytest.mark.parametrize(("held", "known"), [(0, True), (70, False)])
def test_totals_count_even_when_the_lease_was_not_renewed(held: int, known: bool) -> None:
    """What Redis holds for this writer by an earlier copy of the message is to be reported again."""
    state = leased(left=10, own_changed_ms=NOW_MS)
    sent = state.report(NOW_MS, 2, 1_000_000)
    state.settle(sent, state.own, LeaseReply(held, 500, 70, 9, called=False), NOW_MS, renewed=False)
    assert (state.left, state.used, state.over_ms, state.known) == (10, 500, 9, known)


def test_a_report_asks_for_what_waits_beyond_what_is_left() -> None:
    state = leased(left=3)
    state.wait_for(10)
    state.wait_for(4)
    sent = state.report(NOW_MS, 2, 1_000_000)
    assert (sent.left, sent.need) == (3, 7)
    assert sent.left + sent.want >= 14
    again = state.report(NOW_MS, 2, 1_000_000)
    assert again.need == 0


@pytest.mark.parametrize(("used", "needed"), [(985, 9), (990, 9), (991, 3)])
def test_a_request_that_cannot_fit_does_not_hide_a_smaller_one_that_waits_with_it(used: int, needed: int) -> None:
    state = leased(left=1, used=used, known=True)
    state.wait_for(4)
    state.wait_for(10)
    state.wait_for(0)
    assert state.report(NOW_MS, 2, 1_000_000).need == needed


def test_a_lease_follows_the_rate_within_bounds() -> None:
    state = leased(reported_ms=NOW_MS - 1000, own=5_000)
    assert state.report(NOW_MS, 2, 1_000_000).want == 10_000
    state = leased(reported_ms=NOW_MS - 1000, own=5_000)
    assert state.report(NOW_MS, 2, 600).want == 600
    state = leased(reported_ms=NOW_MS - 1000, own=1)
    assert state.report(NOW_MS, 2, 1_000_000).want == FIRST_LEASE_UNITS


def test_a_lease_more_than_half_full_is_not_topped_up() -> None:
    state = leased(left=11, own_changed_ms=NOW_MS)
    assert state.report(NOW_MS, 2, 1_000_000).want == 0
    state = leased(left=10, own_changed_ms=NOW_MS)
    assert state.report(NOW_MS, 2, 1_000_000).want == 10


def test_a_spaced_lease_is_larger_and_filled_up_earlier_if_there_is_plenty() -> None:
    state = leased(reported_ms=NOW_MS - 1000, own=10, left=25, own_changed_ms=NOW_MS)
    state.own_lease().ample = True
    assert state.report(NOW_MS, 2, 1_000_000, spaced=True).want == 35
    state = leased(reported_ms=NOW_MS - 1000, own=10, left=46, own_changed_ms=NOW_MS)
    state.own_lease().ample = True
    assert state.report(NOW_MS, 2, 1_000_000, spaced=True).want == 0
    state = leased(reported_ms=NOW_MS - 1000, own=10, left=15, own_changed_ms=NOW_MS)
    assert state.report(NOW_MS, 2, 1_000_000, spaced=True).want == 0


@pytest.mark.parametrize(("spent", "held", "ample"), [(0, 20, True), (900, 20, False), (0, 900, False)])
def test_a_limit_near_its_end_is_not_ample(spent: int, held: int, ample: bool) -> None:
    state = leased(own_changed_ms=NOW_MS)
    sent = state.report(NOW_MS, 2, 1_000_000)
    state.settle(sent, state.own, LeaseReply(20, spent, held, 0, called=False), NOW_MS, renewed=True)
    assert state.lease.ample is ample


def test_a_limit_whose_period_is_over_asks_for_nothing_and_has_nothing_left() -> None:
    state = leased(left=11, own_changed_ms=NOW_MS)
    sent = state.report(NOW_MS, 2, 1_000_000, renewing=False)
    assert (state.left, sent.left, sent.want) == (0, 0, 0)


def test_asking_again_is_pointless_for_a_moment_after_a_short_answer() -> None:
    state = leased()
    settled(state, 2, need=5)
    assert state.hold_on(5, NOW_MS)
    assert not state.hold_on(2, NOW_MS)
    assert not state.hold_on(5, NOW_MS + CONTENDED_FOR_MS)
    settled(state, 5, need=5)
    assert not state.hold_on(9, NOW_MS)


def test_units_called_in_are_given_back_but_for_the_next_moment() -> None:
    state = leased(left=500, rate_per_s=100, reported_ms=NOW_MS - 100, own_changed_ms=NOW_MS, target=500)
    settled(state, 500, called=True)
    assert state.left == state.lease.rate_per_s * CALLED_RESERVE_MS // 1000
    assert state.to_report


def test_spent_out_is_known_only_from_redis_and_while_the_cap_stands() -> None:
    state = leased(used=995)
    assert not state.spent_out(6)
    settled(state, 0, spent=995)
    assert state.spent_out(6)
    assert not state.spent_out(5)
    state.follow(msgspec.structs.replace(RULE, stop=None), leased=False)
    state.known = True
    assert not state.spent_out(6)


def test_a_small_limit_reports_all_it_spent_in_its_period() -> None:
    state = LimitState(limit_period(msgspec.structs.replace(RULE, period="minute"), "calls", 0, 60, leased=True))
    state.left = 9
    state.spend(4)
    assert state.report(NOW_MS, 2, 1_000_000).cumulative == 4
    state.spend(1)
    assert state.report(NOW_MS, 2, 1_000_000).cumulative == 5


def test_what_an_outage_let_through_is_bounded_until_redis_grants_again() -> None:
    state = leased(outage_used=7)
    sent = state.report(NOW_MS, 2, 1_000_000)
    reply = LeaseReply(0, 0, 0, 0, called=False)
    state.settle(sent, state.own, reply, NOW_MS, renewed=True, granting=False)
    assert state.lease.outage_used == 7
    state.settle(sent, state.own, reply, NOW_MS, renewed=True, granting=True)
    assert state.lease.outage_used == 0


def test_a_forfeited_lease_is_said_again() -> None:
    state = leased(left=10, known=True, own_reported=0)
    state.forfeit()
    assert (state.left, state.to_report) == (0, True)


def test_the_first_lease_of_a_period_is_no_more_than_a_part_of_its_cap() -> None:
    """However busy the period before was: others begin with it, too."""
    former = leased(rate_per_s=1_000, own=1)
    state = leased()
    state.succeed(former, NOW_MS)
    assert state.report(NOW_MS, 2, 1_000_000).want == 1_000 // FIRST_PART


def test_a_period_that_follows_one_in_which_nobody_asked_has_no_lease() -> None:
    former = leased(rate_per_s=10)
    state = leased()
    state.succeed(former, NOW_MS)
    assert state.report(NOW_MS, 2, 1_000_000).want == 0


def without_lease() -> LimitState:
    """A limit whose lease was spent from and went back."""
    state = leased()
    state.wait_for(1)
    granted(state, NOW_MS)
    state.spend(1)
    granted(state, NOW_MS + 100)
    granted(state, NOW_MS + 100 + IDLE_AFTER_MS)
    return state


def test_a_limit_with_nothing_in_hand_keeps_no_lease_and_begins_again_as_the_first_time() -> None:
    state = without_lease()
    assert state.lease is NO_LEASE
    assert (state.own, state.left, state.to_report) == (1, 0, False)
    state.wait_for(3)
    sent = state.report(NOW_MS + 9_000, 2, 1_000_000)
    assert (sent.left, sent.need, sent.want) == (0, 3, FIRST_LEASE_UNITS)


@pytest.mark.parametrize(
    "left_over", [{"held_elsewhere": 1}, {"outage_used": 1}, {"refused": True}, {"watched": True}, {"need": 1}]
)
def test_a_limit_of_which_something_is_to_be_remembered_keeps_its_lease(left_over: dict[str, int]) -> None:
    state = without_lease()
    for name, value in left_over.items():
        setattr(state.own_lease(), name, value)
    held = left_over.get("held_elsewhere", 0)
    sent = state.report(NOW_MS + 9_000, 2, 1_000_000)
    if "need" in left_over:
        state.wait_for(1)  # somebody else, while the report is on its way
    state.settle(sent, state.own, LeaseReply(0, 1, held, 0, called=False), NOW_MS, renewed=True, granting=False)
    assert state.lease is not NO_LEASE
    assert all(getattr(state.lease, name) for name in left_over)


def test_what_limits_without_a_lease_share_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="units of a shared lease"):
        NO_LEASE.units = 1


def test_a_limit_that_left_its_lease_may_forfeit_and_depart() -> None:
    state = without_lease()
    state.forfeit()
    state.depart()
    state.reject()
    assert (state.lease is NO_LEASE, state.to_report) == (True, True)
    state.settle(state.report(NOW_MS, 2, 9), state.own, LeaseReply(0, 1, 0, 0, called=False), NOW_MS, renewed=True)
    assert not state.to_report


def laid_down(units: int = 9) -> LimitState:
    """A limit whose lease rests."""
    state = leased()
    settled(state, units)
    state.lay()
    return state


def test_leases_at_rest_are_one_object_until_they_are_used() -> None:
    one, other = laid_down(), laid_down()
    assert one.lease is other.lease
    assert laid_down(8).lease is not one.lease
    one.spend(2)
    assert (one.left, other.left) == (7, 9)
    one.take_in()
    assert (one.lease.units, other.lease.units) == (7, 9)
    assert one.lease is not other.lease


def test_a_lease_that_was_shared_goes_on_as_it_was() -> None:
    state = laid_down()
    before = {name: getattr(state.lease, name) for name in Lease.__slots__}
    assert {name: getattr(state.own_lease(), name) for name in Lease.__slots__} == before


@pytest.mark.parametrize(
    "change",
    [
        LimitState.forfeit,
        LimitState.depart,
        lambda state: state.wait_for(2),
        lambda state: state.reject(renewing=True),
        lambda state: state.follow(RULE, leased=False),
        lambda state: state.report(NOW_MS, 2, 1_000),
        lambda state: state.spend_unleased(3),
    ],
)
def test_nothing_that_happens_to_a_limit_reaches_those_with_the_same_lease(
    change: Callable[[LimitState], None],
) -> None:
    one, other = laid_down(), laid_down()
    before = {name: getattr(other.lease, name) for name in Lease.__slots__}
    change(one)
    assert {name: getattr(other.lease, name) for name in Lease.__slots__} == before


@pytest.mark.parametrize("busy", [{"outage_used": 1}, {"refused": True}, {"watched": True}, {"need": 1}])
def test_a_lease_with_something_of_its_own_is_not_shared(busy: dict[str, int]) -> None:
    state = leased()
    settled(state, 9)
    for name, value in busy.items():
        setattr(state.own_lease(), name, value)
    state.lay()
    assert not state.lease.shared
