"""The decision rules: status, soft caps, shadows and outage policies."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.catalogue.model import Catalogue, RouteRule
from sidecar.enforcement import verdict
from sidecar.enforcement.lease import Lease
from sidecar.enforcement.limit_period import limit_period
from sidecar.enforcement.limit_state import LimitState
from sidecar.enforcement.verdict import DEGRADED, FINE, GRACE, NEAR, OVER, SHADOW, SHORT, Denial, Findings
from tests.unit.tenants import HARD, NOON_S, ONE, SOFT, account, limit, limit_of, plan

NOW_MS = NOON_S * 1000
END_S = NOON_S + 3600
EMPTY = Catalogue(metrics={}, plans={}, routes=(), identity=())


def state(rule: Any = SOFT, used: int = 0, **changes: Any) -> LimitState:
    made = LimitState(limit_period(rule, rule.name, NOON_S, END_S, leased=rule.stop is not None and not rule.shadow))
    made.used = used
    made.known = changes.pop("known", True)
    for name, value in changes.items():
        setattr(made.own_lease() if name in Lease.__slots__ else made, name, value)
    return made


def said(found: Denial | int | str) -> tuple[int, str, int] | int | str:
    return (found.status, found.reason, found.retry_after_s) if isinstance(found, Denial) else found


@pytest.mark.parametrize(
    ("status", "until_s", "expected"),
    [
        ("active", 0, FINE),
        ("active", NOON_S - 1, FINE),
        ("trialing", 0, FINE),
        ("trialing", NOON_S + 1, FINE),
        ("trialing", NOON_S, (402, "payment_required", 0)),
        ("past_due", NOON_S + 1, GRACE),
        ("past_due", NOON_S, (402, "payment_required", 0)),
        ("past_due", 0, (402, "payment_required", 0)),
        *((status, NOON_S + 1, (402, "payment_required", 0)) for status in ("unpaid", "cancelled", "paused")),
        ("suspended", 0, (402, "payment_required", 0)),
        ("a status to come", 0, (402, "payment_required", 0)),
    ],
)
def test_status_says_whether_the_api_may_be_used(status: str, until_s: int, expected: object) -> None:
    assert said(verdict.standing(account(plan(status=status, status_until_s=until_s)), NOON_S)) == expected


@pytest.mark.parametrize(("used", "expected"), [(0, FINE), (78, FINE), (79, NEAR), (99, NEAR), (100, OVER)])
def test_a_billed_soft_cap_only_marks(used: int, expected: int) -> None:
    assert verdict.counted(state(used=used), 1, NOW_MS) == expected


def test_unlimited_is_always_fine() -> None:
    assert verdict.counted(state(limit(SOFT, included=None), used=10**12), 1, NOW_MS) == FINE


def test_nothing_included_is_over_with_the_first_unit() -> None:
    assert verdict.counted(state(limit(SOFT, included=0)), 1, NOW_MS) == OVER


GRACEFUL = limit(SOFT, beyond="grace", grace_s=60)


@pytest.mark.parametrize(
    ("over_ms", "expected"),
    [
        (0, GRACE),
        (NOW_MS - 59_999, GRACE),
        (NOW_MS - 60_000, (429, "grace_over", 3600)),
        (NOW_MS + 5_000, GRACE),  # Redis' clock is ahead of this machine's
    ],
)
def test_grace_runs_from_the_first_unit_beyond(over_ms: int, expected: object) -> None:
    assert said(verdict.counted(state(GRACEFUL, used=100, over_ms=over_ms), 1, NOW_MS)) == expected


def test_grace_that_is_over_denies_only_what_is_beyond() -> None:
    over = state(GRACEFUL, used=50, over_ms=NOW_MS - 60_000)
    assert verdict.counted(over, 50, NOW_MS) == NEAR


def test_a_soft_cap_with_nothing_beyond_denies() -> None:
    assert said(verdict.counted(state(limit(SOFT, beyond="deny"), used=100), 1, NOW_MS)) == (429, "limit_reached", 3600)


def test_a_denial_lasts_at_least_a_second() -> None:
    late = state(limit(SOFT, beyond="deny"), used=100)
    assert said(verdict.counted(late, 1, END_S * 1000)) == (429, "limit_reached", 1)


BUFFERED = limit(GRACEFUL, stop=110)
CEILING = limit(SOFT, stop=500)


@pytest.mark.parametrize("rule", [HARD, BUFFERED, CEILING])
def test_what_stops_by_amount_asks_for_a_lease_until_all_is_spent(rule: Any) -> None:
    short = state(rule, used=rule.stop - 5)
    assert verdict.leased(short, 5, 0, NOW_MS, away=False) == SHORT
    assert said(verdict.leased(short, 6, 0, NOW_MS, away=False)) == (429, "limit_reached", 3600)


def test_what_is_spent_out_is_remembered_only_while_it_is_known() -> None:
    assert verdict.leased(state(HARD, used=100, known=False), 1, 0, NOW_MS, away=False) == SHORT


def test_more_than_the_cap_never_fits() -> None:
    for away in (False, True):
        found = verdict.leased(state(HARD, known=False), 101, 0, NOW_MS, away=away)
        assert said(found) == (429, "cost_too_large", 0)


def test_a_cap_of_nothing_is_used_up_from_the_start() -> None:
    nothing = state(limit(HARD, included=0, stop=0), known=False)
    assert said(verdict.leased(nothing, 5, 0, NOW_MS, away=False)) == (429, "limit_reached", 3600)


def test_a_cost_that_never_fits_is_told_before_a_limit_that_comes_back() -> None:
    denials = [
        Denial(429, "limit_reached", state(HARD, used=100), 3600),
        Denial(429, "cost_too_large", state(limit(HARD, name="small", included=5, stop=5)), cost=8),
        Denial(429, "limit_contended", state(HARD), 1),
    ]
    decision = verdict.deny(account(), denials, NOW_MS, EMPTY)
    assert (decision.reason, decision.retry_after_s, decision.violated) == (
        "cost_too_large",
        0,
        ("calls", "small", "calls"),
    )
    assert decision.limit is not None
    assert (decision.limit.cost, decision.limit.quota) == (8, 5)


def test_units_held_elsewhere_are_worth_another_try_in_a_second() -> None:
    held = state(HARD, used=50, contended_until_ms=1_000)
    assert said(verdict.leased(held, 1, 999, NOW_MS, away=False)) == (429, "limit_contended", 1)
    assert verdict.leased(held, 1, 1_000, NOW_MS, away=False) == SHORT


@pytest.mark.parametrize(
    ("policy", "used", "units", "expected"),
    [
        ("closed", 0, 1, (503, "store_unavailable", 2)),
        ("open", 0, 90, DEGRADED),
        ("bounded", 0, 10, DEGRADED),
        ("bounded", 9, 1, DEGRADED),
        ("bounded", 9, 2, (503, "store_unavailable", 2)),
        ("bounded", 10, 1, (503, "store_unavailable", 2)),
    ],
)
def test_an_outage_follows_the_limits_policy(policy: str, used: int, units: int, expected: object) -> None:
    away = state(limit(HARD, on_outage=policy, outage_units=10), outage_used=used)
    assert said(verdict.leased(away, units, 0, NOW_MS, away=True)) == expected


def test_what_is_known_to_be_spent_is_denied_in_an_outage_too() -> None:
    spent = state(limit(HARD, on_outage="open"), used=100)
    assert said(verdict.leased(spent, 1, 0, NOW_MS, away=True)) == (429, "limit_reached", 3600)


def test_headroom_wants_a_unit_left_and_spends_none() -> None:
    assert verdict.headroom(state(HARD, used=99, known=True), NOW_MS, away=False) == FINE
    assert verdict.headroom(state(HARD, used=99, known=True), NOW_MS, away=True) == FINE
    spent = verdict.headroom(state(HARD, used=100, known=True), NOW_MS, away=False)
    assert said(spent) == (429, "limit_reached", 3600)


def test_headroom_that_redis_never_told_is_asked_for_and_follows_the_policy_in_an_outage() -> None:
    assert verdict.headroom(state(HARD, known=False), NOW_MS, away=False) == verdict.SHORT
    assert said(verdict.headroom(state(HARD, known=False), NOW_MS, away=True)) == (503, "store_unavailable", 2)
    assert verdict.headroom(state(limit(HARD, on_outage="open"), known=False), NOW_MS, away=True) == DEGRADED


def findings(snapshot: Any, route: RouteRule = ONE) -> Findings:
    owner = account(snapshot)
    return Findings(owner, owner.charge(route, "", "", NOON_S), NOW_MS)


def test_a_missing_feature_is_a_403_unless_payment_comes_first() -> None:
    route = RouteRule(name="export", requires=("export",))
    [denial] = findings(plan(), route).denials
    assert said(denial) == (403, "feature_missing", 0)
    [denial] = findings(plan(status="unpaid"), route).denials
    assert said(denial) == (402, "payment_required", 0)


@pytest.mark.parametrize("value", [False, 0, ""])
def test_a_feature_that_is_off_is_missing(value: object) -> None:
    route = RouteRule(name="export", requires=("export",))
    assert findings(plan(features={"export": value}), route).denials
    assert not findings(plan(features={"export": 5}), route).denials


@pytest.mark.parametrize("shadowed", ["tenant", "limit"])
def test_a_shadow_lets_a_denial_through_with_its_mark(shadowed: str) -> None:
    owner = account(plan(shadow=shadowed == "tenant"))
    found = Findings(owner, owner.charge(ONE, "", "", NOON_S), NOW_MS)
    limited = state(limit(HARD, shadow=shadowed == "limit"), used=100)
    found.add(owner, limited, 1, verdict.counted(limited, 1, NOW_MS))
    assert (found.denials, found.mark) == ([], SHADOW)
    answer = verdict.allow(owner, owner.charge(ONE, "", "", NOON_S), found.mark, NOW_MS)
    assert (answer.allow, answer.reason, answer.quota_status) == (True, "shadow", "shadow")


def test_a_tenants_shadow_covers_payment_and_features() -> None:
    found = findings(plan(shadow=True, status="unpaid"), RouteRule(name="export", requires=("export",)))
    assert found.mark == SHADOW


def test_one_limits_shadow_does_not_cover_another() -> None:
    owner = account()
    found = Findings(owner, owner.charge(ONE, "", "", NOON_S), NOW_MS)
    found.add(owner, state(limit(HARD, shadow=True)), 1, Denial(429, "limit_reached"))
    found.add(owner, state(HARD), 1, Denial(429, "limit_reached"))
    assert len(found.denials) == 1


def test_a_limit_let_through_by_its_policy_is_not_taken_from_a_lease() -> None:
    owner = account()
    found = Findings(owner, owner.charge(ONE, "", "", NOON_S), NOW_MS)
    open_, short = state(HARD), state(HARD)
    found.add(owner, open_, 1, DEGRADED)
    found.add(owner, short, 2, SHORT)
    assert found.unleased == {open_}
    assert found.short == [(owner, short, 2)]
    assert found.mark == DEGRADED


def test_the_strongest_mark_wins() -> None:
    owner = account(plan(status="past_due", status_until_s=NOON_S + 1))
    found = Findings(owner, owner.charge(ONE, "", "", NOON_S), NOW_MS)
    for mark in (FINE, NEAR, OVER):
        found.add(owner, state(), 1, mark)
    assert found.mark == GRACE


def test_an_answer_shows_the_tightest_limit() -> None:
    wide, tight = limit(HARD, name="wide", stop=1000, included=1000), limit(HARD, name="tight", stop=50, included=50)
    owner = account(plan(wide, tight, limit(SOFT, name="none", included=None)))
    charge = owner.charge(ONE, "", "", NOON_S)
    limit_of(owner, "wide").used, limit_of(owner, "tight").used = 900, 40
    shown = verdict.allow(owner, charge, FINE, NOW_MS).limit
    assert shown is not None
    assert (shown.name, shown.quota, shown.used, shown.remaining) == ("wide", 1000, 900, 100)
    limit_of(owner, "tight").used = 46
    shown = verdict.allow(owner, charge, FINE, NOW_MS).limit
    assert shown is not None
    assert (shown.name, shown.remaining, shown.reset_s) == ("tight", 4, 12 * 3600)
