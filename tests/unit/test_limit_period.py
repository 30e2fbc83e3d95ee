"""What tenants of one plan share of a limit."""

from __future__ import annotations

from sidecar.enforcement.limit_period import limit_period
from tests.unit.tenants import HARD, NOON_S, limit

END_S = NOON_S + 60


def test_tenants_with_an_equal_rule_share_what_follows_from_it() -> None:
    one = limit_period(HARD, "calls", NOON_S, END_S, leased=True)
    assert limit_period(limit(HARD), "calls", NOON_S, END_S, leased=True) is one
    assert limit_period(limit(HARD, stop=99), "calls", NOON_S, END_S, leased=True) is not one
    assert limit_period(HARD, "calls", NOON_S + 60, END_S + 60, leased=True) is not one
    assert limit_period(HARD, "calls", NOON_S, END_S, leased=False) is not one


def test_a_limit_with_a_scope_is_nobody_elses() -> None:
    rule = limit(HARD, scope="user")
    one, other = (limit_period(rule, f"calls:{user}", NOON_S, END_S, leased=True) for user in ("u1", "u2"))
    assert (one.id, one.series, other.id, other.series) == ("calls:u1", "api@calls:u1", "calls:u2", "api@calls:u2")
