"""A plan and a tenant's overrides become a snapshot."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.catalogue.load import parse
from sidecar.catalogue.resolve import resolve
from sidecar.catalogue.snapshot import LimitRule, Snapshot
from sidecar.errors import CatalogueInvalid, NotFound

TEXT = """
identity: [{header: x-tenant-id}]
metrics: {api_calls: {}, tokens: {scale: 2, reported: true}, seats: {kind: level}}
plans:
  pro:
    interval: year
    features: {sso: false, region: eu}
    forward: [region]
    limits:
      api_calls: 1000
      tokens: {included: 10, ceiling: 15, overage: {price: 1}}
      daily: {metric: api_calls, included: 99, period: day, cap: soft, buffer: 10}
      stopped: {metric: api_calls, included: 50, grace: 0}
      free: {metric: api_calls, included: null}
      seats: 3
"""
CATALOGUE = parse(TEXT, "c")


def snapshot(overrides: dict[str, Any] | None = None, plan: str = "pro", *, strict: bool = True) -> Snapshot:
    return resolve(
        CATALOGUE,
        tenant="t",
        rev=7,
        plan=plan,
        status="past_due",
        status_until_s=9,
        parent="org",
        anchor_s=5,
        shadow=False,
        overrides=overrides or {},
        strict=strict,
    )


def rule(name: str, overrides: dict[str, Any] | None = None) -> LimitRule:
    return next(rule for rule in snapshot(overrides).limits if rule.name == name)


def test_the_tenant_is_carried_over() -> None:
    found = snapshot()
    assert (found.tenant, found.rev, found.status, found.status_until_s, found.parent) == ("t", 7, "past_due", 9, "org")
    assert (found.anchor_s, found.interval_months, found.forward) == (5, 12, ("region",))


@pytest.mark.parametrize(
    ("name", "stop", "beyond"),
    [
        ("api_calls", 1_000, "deny"),
        ("tokens", 1_500, "bill"),
        ("daily", 108, "grace"),
        ("stopped", 50, "deny"),
        ("free", None, "deny"),
    ],
)
def test_a_limit_stops_where_its_plan_says(name: str, stop: int | None, beyond: str) -> None:
    assert (rule(name).stop, rule(name).beyond) == (stop, beyond)


def test_levels_are_not_leased() -> None:
    assert "seats" not in {rule.name for rule in snapshot().limits}


def test_overrides_change_what_they_name_and_nothing_else() -> None:
    found = snapshot({"limits": {"api_calls": 5000}, "features": {"sso": True}, "shadow": True})
    assert (found.features, found.shadow) == ({"sso": True, "region": "eu"}, True)
    assert [one.stop for one in found.limits] == [5_000, 1_500, 108, 50, None]
    assert [one for one in found.limits if one.name != "api_calls"] == [
        one for one in snapshot().limits if one.name != "api_calls"
    ]


def test_an_override_may_lift_a_limit() -> None:
    assert rule("api_calls", {"limits": {"api_calls": None}}).included is None


def test_a_ceiling_moves_along_with_the_included_amount() -> None:
    assert rule("tokens", {"limits": {"tokens": {"included": "20.5"}}}).stop == 2_550
    assert rule("tokens", {"limits": {"tokens": {"included": 20, "ceiling": 21}}}).stop == 2_100


def test_a_cap_made_soft_has_the_defaults_of_soft_caps() -> None:
    found = rule("api_calls", {"limits": {"api_calls": {"cap": "soft"}}})
    assert (found.stop, found.beyond, found.grace_s, found.on_outage) == (None, "grace", 86_400, "open")
    assert rule("daily", {"limits": {"daily": {"cap": "hard"}}}).on_outage == "closed"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"limit": {}}, 'limit: unknown key, did you mean "limits"?'),
        ({"limits": []}, "limits: is no object"),
        ({"features": None}, "features: is no object"),
        ({"shadow": "yes"}, "shadow: is not true or false"),
        ({"limits": {"api_cals": 1}}, 'limits.api_cals: plan "pro" has no such limit, did you mean "api_calls"?'),
        ({"limits": {"api_calls": {"include": 1}}}, 'limits.api_calls.include: unknown key, did you mean "included"?'),
        ({"limits": {"api_calls": -1}}, "limits.api_calls.included: -1 is negative"),
        ({"limits": {"api_calls": 1.5}}, "limits.api_calls.included: 1.5 is not exact"),
        ({"limits": {"api_calls": {"cap": "firm"}}}, "limits.api_calls.cap: 'firm' is wrong; one of hard, soft"),
        ({"limits": {"api_calls": {"cap": []}}}, "limits.api_calls.cap: [] is wrong"),
        ({"limits": {"daily": {"buffer": True}}}, "limits.daily.buffer: True is wrong; a whole number"),
        ({"limits": {"api_calls": {"shadow": 1}}}, "limits.api_calls.shadow: is not true or false"),
        ({"limits": {"tokens": {"ceiling": 5}}}, "limits.tokens.ceiling: is below the included amount; at least 10"),
        ({"features": {"sso": [1]}}, "features.sso: [1] is no feature value"),
        ({"features": {"sso": "a\nb"}}, "features.sso: 'a\\nb' is no feature value"),
    ],
)
def test_wrong_overrides_are_named_by_their_key_and_can_be_left_out(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(CatalogueInvalid) as refused:
        snapshot(overrides)
    assert any(problem.startswith(says) for problem in refused.value.problems), refused.value.problems
    assert snapshot(overrides, strict=False).plan == "pro"


def test_all_wrong_overrides_are_named_at_once() -> None:
    with pytest.raises(CatalogueInvalid) as refused:
        snapshot({"limits": {"a": 1, "b": 2}, "x": 1, "shadow": 3})
    assert len(refused.value.problems) == 4


def test_an_unknown_plan_without_a_default_is_not_unlimited() -> None:
    with pytest.raises(NotFound, match='there is no plan "prop", did you mean "pro"'):
        snapshot(plan="prop")
