"""A tenant in memory: what requests cost, when that is worked out anew, and what a new snapshot changes."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.catalogue.model import RouteRule
from sidecar.catalogue.period import bounds
from sidecar.enforcement.account import (
    CHARGES_MAX,
    DEPARTED_MAX,
    SWEEP_LEAST,
    UNCONFIRMED_MAX,
    Account,
    scope_value,
)
from sidecar.enforcement.contract import Contract
from sidecar.enforcement.limit_state import FORGET_AFTER_MS, LimitState
from tests.unit.tenants import HARD, NOON_S, ONE, SOFT, account, exchange, limit, limit_of, plan

DAY_S = 86_400
PER_USER = limit(HARD, name="per_user", scope="user")
PER_MINUTE = limit(HARD, name="burst", period="minute")


def test_a_charge_is_worked_out_once_for_its_hour() -> None:
    owner = account()
    charge = owner.charge(ONE, "", "", NOON_S)
    assert owner.charge(ONE, "", "", NOON_S + 3599) is charge
    assert owner.charge(ONE, "", "", NOON_S + 3600) is not charge


@pytest.mark.parametrize("other", [("k", ""), ("", "u")])
def test_another_key_or_user_has_its_own_charge(other: tuple[str, str]) -> None:
    owner = account()
    assert owner.charge(ONE, *other, NOON_S) is not owner.charge(ONE, "", "", NOON_S)


def test_a_route_of_the_same_name_that_says_something_else_has_its_own_charge() -> None:
    owner = account()
    charge = owner.charge(ONE, "", "", NOON_S)
    assert owner.charge(RouteRule(name="one", costs={"api": 1}), "", "", NOON_S) is charge
    assert owner.charge(RouteRule(name="one", costs={"api": 2}), "", "", NOON_S) is not charge


def test_a_charge_ends_with_the_shortest_period_it_touches() -> None:
    owner = account(plan(HARD, PER_MINUTE))
    charge = owner.charge(ONE, "", "", NOON_S + 30)
    assert (charge.since_ms, charge.until_ms) == (NOON_S * 1000, (NOON_S + 60) * 1000)


def test_a_charge_of_which_only_a_minute_ended_goes_on_with_the_next_one() -> None:
    owner = account(plan(HARD, PER_MINUTE, PER_USER))
    charge = owner.charge(ONE, "", "u1", NOON_S)
    other = owner.charge(ONE, "", "u2", NOON_S)
    day, minute, users = (state for _, state, _ in charge.limits)
    charge.windows = []
    assert not owner.renew(charge, NOON_S + 59)
    assert owner.renew(charge, NOON_S + 60)
    assert owner.charge(ONE, "", "u1", NOON_S + 60) is charge
    assert [state for _, state, _ in charge.limits] == [day, limit_of(owner, "burst"), users]
    assert charge.spends == tuple((state, units) for _, state, units in charge.limits)
    assert limit_of(owner, "burst") is not minute
    assert (charge.since_ms, charge.until_ms) == ((NOON_S + 60) * 1000, (NOON_S + 120) * 1000)
    assert charge.windows == []
    assert not owner.renew(other, NOON_S + 60), "it refers to the minute that departed"


@pytest.mark.parametrize(
    ("changes", "at_s"),
    [
        ({}, NOON_S + 3600),  # windows are of an hour
        ({"anchor_s": NOON_S + 90}, NOON_S + 90),
        ({"status": "trialing", "status_until_s": NOON_S + 90}, NOON_S + 90),
        ({}, NOON_S - 60),
    ],
)
def test_a_charge_of_which_more_than_a_minute_ended_is_worked_out_anew(changes: dict[str, Any], at_s: int) -> None:
    owner = account(plan(HARD, PER_MINUTE, **changes))
    charge = owner.charge(ONE, "", "", NOON_S)
    minute = limit_of(owner, "burst")
    assert not owner.renew(charge, at_s)
    assert limit_of(owner, "burst") is minute
    assert owner.charge(ONE, "", "", at_s) is not charge


def test_a_childs_charge_is_worked_out_anew_with_each_minute() -> None:
    owner = account(plan(HARD, PER_MINUTE), account(plan(HARD)))
    assert not owner.renew(owner.charge(ONE, "", "", NOON_S), NOON_S + 60)


def test_a_charge_ends_with_a_trial_and_with_the_billing_period() -> None:
    assert account(plan(status_until_s=NOON_S + 7)).charge(ONE, "", "", NOON_S).until_ms == (NOON_S + 7) * 1000
    assert account(plan(anchor_s=NOON_S + 9)).charge(ONE, "", "", NOON_S).until_ms == (NOON_S + 9) * 1000


def test_a_clock_that_steps_back_over_a_period_gets_the_period_it_is_in() -> None:
    owner = account()
    midnight_s = NOON_S + DAY_S // 2
    later = owner.charge(ONE, "", "", midnight_s)
    earlier = owner.charge(ONE, "", "", midnight_s - 1)
    assert (later.limits[0][1].period.start_s, earlier.limits[0][1].period.start_s) == (midnight_s, midnight_s - DAY_S)
    again = owner.charge(ONE, "", "", midnight_s)
    assert again.limits[0][1] is limit_of(owner, "calls")


@pytest.mark.parametrize(
    "changes", [{"anchor_s": NOON_S + 1800}, {"status": "trialing", "status_until_s": NOON_S + 1800}], ids=repr
)
def test_a_clock_that_steps_back_over_a_billing_period_or_a_trial_gets_a_charge_of_then(
    changes: dict[str, Any],
) -> None:
    owner = account(plan(SOFT, **changes))
    after = owner.charge(ONE, "", "", NOON_S + 1801)
    before = owner.charge(ONE, "", "", NOON_S + 1799)
    assert after is not before
    assert owner.charge(ONE, "", "", NOON_S + 1800) is not before


def test_no_charge_refers_to_a_limit_that_departed() -> None:
    """Such a limit never gets a lease again, so its requests would be refused until the charge ends."""
    owner = account()
    other = RouteRule(name="other", costs={"api": 1})
    midnight_s = NOON_S + DAY_S // 2
    owner.charge(ONE, "", "", midnight_s)
    owner.charge(other, "", "", midnight_s - 1)
    owner.charge(other, "", "", midnight_s)
    assert owner.charge(ONE, "", "", midnight_s).limits[0][1] is limit_of(owner, "calls")


def test_headroom_is_watched_and_costs_nothing() -> None:
    owner = account()
    charge = owner.charge(RouteRule(name="peek", headroom=("api",)), "", "", NOON_S)
    [(_, state, units)] = charge.limits
    assert (units, charge.series, state.lease.watched) == (0, [], True)


def test_a_scoped_limit_counts_its_own_series_beside_the_tenants() -> None:
    owner = account(plan(HARD, PER_USER))
    charge = owner.charge(RouteRule(name="two", costs={"api": 2}), "", "u1", NOON_S)
    assert [(series, units) for _, series, units in charge.series] == [("api", 2), ("api@per_user:u1", 2)]
    assert [state.id for _, state, _ in charge.limits] == ["calls", "per_user:u1"]
    anonymous = owner.charge(ONE, "", "", NOON_S)
    assert [state.id for _, state, _ in anonymous.limits] == ["calls"]


def test_small_limits_have_no_windows_of_their_own() -> None:
    owner = account(plan(limit(PER_MINUTE, scope="user")))
    assert [series for _, series, _ in owner.charge(ONE, "", "u1", NOON_S).series] == ["api"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (HARD, ""),
        (limit(HARD, routes=("two",)), None),
        (limit(HARD, scope="route"), "one"),
        (limit(HARD, scope="route", routes=("one",)), "one"),
        (limit(HARD, scope="key"), "k"),
        (PER_USER, "u"),
    ],
)
def test_a_scope_names_what_is_counted_apart(rule: object, expected: str | None) -> None:
    assert scope_value(rule, ONE, "k", "u") == expected  # type: ignore[arg-type]


def test_limits_of_the_parent_apply_too_and_are_counted_there() -> None:
    parent = account(plan(tenant="org"))
    child = account(plan(), parent)
    charge = child.charge(ONE, "", "u1", NOON_S)
    assert [(owner.tenant, series) for owner, series, _ in charge.series] == [("acme", "api"), ("org", "api")]
    assert [owner.tenant for owner, _, _ in charge.limits] == ["acme", "org"]


def test_a_change_of_the_parents_plan_reaches_the_childs_next_request() -> None:
    parent = account(plan(tenant="org"))
    child = account(plan(), parent)
    child.charge(ONE, "", "", NOON_S)
    parent.adopt(plan(limit(HARD, name="new"), tenant="org", rev=2))
    assert [state.id for _, state, _ in child.charge(ONE, "", "", NOON_S).limits] == ["calls", "new"]


def test_a_window_of_the_parent_that_is_freed_is_in_no_childs_charge() -> None:
    """Its cell may be another window's by then."""
    parent = account(plan(tenant="org"))
    child = account(plan(), parent)
    charge = child.charge(ONE, "", "", NOON_S)
    parent.drop_charges()
    assert child.charge(ONE, "", "", NOON_S) is not charge


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({}, 30),
        ({"stop": 200, "included": 200}, 30),
        ({"stop": 99, "included": 99}, 0),
        ({"stop": None}, 0),
        ({"shadow": True}, 0),
        ({"on_outage": "open"}, 30),
    ],
)
def test_a_lease_goes_on_unless_its_cap_was_lowered(change: dict[str, object], left: int) -> None:
    owner = account()
    [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
    state.left, state.known = 30, True
    owner.adopt(plan(limit(HARD, **change), rev=2))
    assert limit_of(owner, "calls") is state
    assert (state.left, state.known) == (left, False)
    assert state.rule == limit(HARD, **change)


@pytest.mark.parametrize("change", [{"metric": "tokens"}, {"period": "month"}, {"scope": "user"}, {"name": "other"}])
def test_a_limit_of_another_kind_departs_and_gives_its_lease_back(change: dict[str, object]) -> None:
    owner = account()
    [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
    state.left = 30
    owner.adopt(plan(limit(HARD, **change), rev=2))
    assert (owner.limits.values(), owner.departed, state.left) == ((), (state,), 0)
    assert owner.touched


def test_a_tenant_in_shadow_has_no_leases() -> None:
    owner = account()
    [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
    state.left = 30
    owner.adopt(plan(shadow=True, rev=2))
    assert (state.left, state.period.leased) == (0, False)


def test_a_new_period_starts_a_new_limit_and_gives_the_old_lease_back() -> None:
    owner = account()
    [(_, old, _)] = owner.charge(ONE, "", "", NOON_S).limits
    old.left, old.own_lease().outage_used = 30, 4
    [(_, new, _)] = owner.charge(ONE, "", "", NOON_S + DAY_S).limits
    assert (new.left, new.known, owner.departed, old.left) == (0, False, (old,), 0)
    assert new.lease.outage_used == 4  # an outage does not end with a period


def test_what_was_spent_of_a_minute_is_known_when_it_comes_back() -> None:
    """Redis merges it with max: counted from 0 again, it would be swallowed."""
    owner = account(plan(PER_MINUTE))
    [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
    state.spend_unleased(7)
    owner.charge(ONE, "", "", NOON_S + 60)
    [(_, again, _)] = owner.charge(ONE, "", "", NOON_S + 59).limits
    assert again is not state
    assert again.own == 7


def test_minutes_that_are_long_over_take_no_memory() -> None:
    owner = account(plan(PER_MINUTE))
    for minute in range(1_000):
        [(_, state, _)] = owner.charge(ONE, "", "", NOON_S + minute * 60).limits
        state.spend_unleased(7)
        owner.exchange.composed_ms += 60_000
    assert len(owner._small_own) <= 8
    [(_, again, _)] = owner.charge(ONE, "", "", NOON_S + 998 * 60).limits
    assert again.own == 7


def test_what_was_spent_of_a_minute_is_known_after_the_clock_came_back_from_far_ahead() -> None:
    """Redis has this writer's spending of that minute: what is counted from 0 again would be swallowed."""
    owner = account(plan(limit(PER_MINUTE, scope="user")))
    users = [f"u{number}" for number in range(20)]
    for start_s in (NOON_S, NOON_S + 86_400):
        for user in users:
            [(_, state, _)] = owner.charge(ONE, "", user, start_s).limits
            state.spend_unleased(7)
        owner.exchange.composed_ms += 1_000
    again = [owner.charge(ONE, "", user, NOON_S).limits[0][1].own for user in users]
    assert again == [7] * len(users)


def test_another_grandparent_is_noticed_although_its_edition_is_an_older_one() -> None:
    shard = exchange()
    grandparents = [Account(plan(tenant=name), shard) for name in ("one", "other")]
    parent = Account(plan(tenant="parent"), shard, grandparents[0])
    owner = Account(plan(), shard, parent)
    grandparents[0].drop_charges()
    assert {found.tenant for found, _, _ in owner.charge(ONE, "", "", NOON_S).limits} == {"acme", "parent", "one"}
    parent.parent = grandparents[1]
    parent.adopt(plan(tenant="parent", rev=2))
    assert {found.tenant for found, _, _ in owner.charge(ONE, "", "", NOON_S).limits} == {"acme", "parent", "other"}


def test_limits_that_depart_while_nobody_can_be_told_are_bounded() -> None:
    owner = account(plan(PER_MINUTE))
    last = [owner.charge(ONE, "", "", NOON_S + minute * 60).limits[0][1] for minute in range(DEPARTED_MAX + 5)][-1]
    assert len(owner.departed) == DEPARTED_MAX
    owner.charge(ONE, "", "", NOON_S)
    assert owner.departed[-1] is last


def test_tenants_of_one_plan_share_what_it_says() -> None:
    def contract_of(tenant: str, **changes: Any) -> Contract:
        said: dict[str, Any] = {"features": {"a": True, "b": 3}, "forward": ("a", "b")} | changes
        return account(plan(limit(HARD), tenant=tenant, **said)).contract

    one = contract_of("one")
    assert contract_of("other", rev=7, anchor_s=5) is one
    for change in ({"plan": "large"}, {"status": "unpaid"}, {"shadow": True}, {"features": {"a": 1, "b": 3}}):
        assert contract_of("other", **change) is not one


def test_features_are_passed_on_as_text() -> None:
    owner = account(plan(features={"a": True, "b": 3, "c": "x", "d": "kept"}, forward=("a", "b", "c", "gone")))
    assert owner.contract.forwarded == (("a", "true"), ("b", "3"), ("c", "x"))


def test_charges_are_bounded() -> None:
    owner = account()
    for number in range(CHARGES_MAX + 5):
        owner.charge(ONE, "", f"u{number}", NOON_S)
    assert len(owner.exchange.charges) <= CHARGES_MAX


def test_limits_of_users_who_left_are_forgotten() -> None:
    owner = account(plan(HARD, PER_USER))
    for number in range(SWEEP_LEAST - 1):
        for _, state, _ in owner.charge(ONE, "", f"u{number}", NOON_S).limits:
            state.known = True
    owner.exchange.composed_ms = FORGET_AFTER_MS
    busy = limit_of(owner, "per_user:u3")
    busy.left = 1
    owner.charge(ONE, "", "new", NOON_S)
    assert {state.id for state in owner.limits.values()} == {"calls", "per_user:u3", "per_user:new"}


def test_no_charge_refers_to_a_limit_that_was_forgotten_meanwhile() -> None:
    """Its use would be reported to nobody, and no lease of it come."""
    per_key = limit(HARD, name="per_key", scope="key")
    owner = account(plan(PER_USER, per_key))
    states = [state for _, state, _ in owner.charge(ONE, "", "u1", NOON_S).limits]
    for number in range(SWEEP_LEAST - 1):
        states += [state for _, state, _ in owner.charge(ONE, f"k{number}", "", NOON_S).limits]
    for state in states:
        state.known = True
    owner.exchange.composed_ms = FORGET_AFTER_MS
    charge = owner.charge(ONE, "new", "u1", NOON_S)
    assert [limit_of(owner, state.id) for _, state, _ in charge.limits] == [state for _, state, _ in charge.limits]


def unconfirmed(owner: Account, user: str) -> LimitState:
    """The limit of a user whose lease was given back by a message that nobody answered."""
    state = owner.charge(ONE, "", user, NOON_S).limits[1][1]
    state.report(1, 2, 1_000)
    state.own_lease().in_flight = state.known = False
    return state


def test_a_limit_is_kept_until_redis_has_confirmed_that_its_lease_came_back() -> None:
    """Redis would set the units aside for a writer that speaks of them no more."""
    owner = account(plan(HARD, PER_USER))
    state = unconfirmed(owner, "u1")
    owner.exchange.composed_ms = FORGET_AFTER_MS + 1
    owner.adopt(plan(HARD, PER_USER, rev=2))
    assert limit_of(owner, "per_user:u1") is state
    limit_of(owner, "per_user:u1").known = True
    owner.adopt(plan(HARD, PER_USER, rev=3))
    assert owner.limits.get("per_user:u1") is None


def test_an_outage_with_many_users_keeps_a_bounded_number_of_unconfirmed_limits() -> None:
    owner = account(plan(HARD, PER_USER))
    for number in range(4 * UNCONFIRMED_MAX):
        unconfirmed(owner, f"u{number}")
        owner.exchange.composed_ms = FORGET_AFTER_MS + 1
    assert len(owner.limits) <= 2 * UNCONFIRMED_MAX + 2
    assert owner.limits.get(f"per_user:u{4 * UNCONFIRMED_MAX - 1}") is not None


def test_a_soft_limit_is_not_leased() -> None:
    owner = account(plan(SOFT))
    [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
    assert not state.period.leased


def test_a_lease_of_a_minute_that_ended_goes_on_in_the_next_at_the_rate_it_had() -> None:
    owner = account(plan(limit(PER_MINUTE, included=8_000, stop=8_000)))
    [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
    state.left, state.own_lease().rate_per_s = 5, 100
    owner.roll(NOON_S + 59, 59_000, 1)
    assert limit_of(owner, "burst") is state
    state.spend(1)
    owner.roll(NOON_S + 60, 60_000, 1)
    fresh = limit_of(owner, "burst")
    assert (list(owner.departed), state.left, fresh.period.start_s) == ([state], 0, NOON_S + 60)
    assert fresh.report(owner.exchange.composed_ms, 2, 1_000_000).want == 200


def test_a_lease_that_was_used_up_in_its_minute_is_not_asked_for_in_the_next() -> None:
    owner = account(plan(PER_MINUTE))
    [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
    owner.roll(NOON_S + 60, 60_000, 1)
    assert limit_of(owner, "burst") is state


def test_tenants_that_spent_the_same_in_the_same_minutes_share_what_is_remembered() -> None:
    owners = [account(plan(limit(PER_MINUTE), tenant=name)) for name in ("one", "other", "third")]
    for owner, units in zip(owners, (7, 7, 8), strict=True):
        for minute in range(3):
            [(_, state, _)] = owner.charge(ONE, "", "", NOON_S + minute * 60).limits
            state.spend_unleased(units)
    one, other, third = owners
    assert one._small_own is other._small_own
    assert one._small_own is not third._small_own
    assert [spent.own for spent in third._small_own.values()] == [8, 8]


def test_a_billing_period_that_becomes_a_year_goes_on_with_its_lease() -> None:
    """Redis keeps the year under the month's key: reported with the month's end, it would be forgotten with that."""
    anchor_s = NOON_S - 43_200
    owner = account(plan(limit(HARD, period="billing"), anchor_s=anchor_s))
    [(_, state, _)] = owner.charge(ONE, "", "", NOON_S).limits
    state.left = 7
    owner.adopt(plan(limit(HARD, period="billing"), rev=2, anchor_s=anchor_s, interval_months=12))
    [(_, year, _)] = owner.charge(ONE, "", "", NOON_S).limits
    assert year is state
    assert year.left == 7
    assert (year.period.start_s, year.period.end_s) == bounds("billing", NOON_S, anchor_s, 12)


def test_a_day_that_becomes_a_month_is_reported_with_the_months_end() -> None:
    owner = account(plan())
    [(_, day, _)] = owner.charge(ONE, "", "", NOON_S).limits
    owner.adopt(plan(limit(HARD, period="month"), rev=2))
    [departed] = owner.departed
    assert departed is day
    assert (day.period.start_s, day.period.end_s) == bounds("month", NOON_S)
    assert day.rule.period == "day"


def test_a_tenant_has_no_container_for_its_only_window() -> None:
    owner = account()
    first, second = (owner.exchange.window(owner, ("api", 0, hour)) for hour in (1, 2))
    assert list(owner.windows.values()) == [first, second]
    owner.windows = owner.windows.without(first.id)
    assert owner._windows is second
    assert (owner.windows.get(second.id), owner.windows.get(first.id), len(owner.windows)) == (second, None, 1)
    owner.windows = owner.windows.without(second.id)
    assert not owner.windows
