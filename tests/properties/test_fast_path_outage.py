"""While Redis is away the fast path allows what outage policies let through, as the enforcer does."""

from __future__ import annotations

import pytest

from sidecar.catalogue.snapshot import LimitRule
from tests.properties.models.deciding import World
from tests.unit.tenants import limit, limit_of, plan

# A part of it, for which no close look is needed, is a hundred units.
OPEN = limit(included=6_400, stop=6_400, on_outage="open")
BOUNDED = limit(OPEN, on_outage="bounded", outage_units=250)


def without_redis(rule: LimitRule, *, lease: int = 3, spent: int = 0) -> tuple[World, World]:
    """A worker with the fast path and one without it that know a limit, with so much of a lease, when Redis goes."""
    worlds = World(fast=True), World(fast=False)
    for world in worlds:
        world.adopt(plan(rule))
        for units in (0, lease):  # the first report only hears which generation it is
            world.ask(0, b"")
            world.sync(units, spent, called=False)
        world.reachable = False
    return worlds


def same(fast: World, slow: World, *checks: int) -> list[str]:
    """Have both decide the same requests; what they both say of each."""
    said = []
    for check in checks:
        one, other = fast.ask(check, b""), slow.ask(check, b"")
        assert one == other
        assert fast.seen() == slow.seen()
        said.append(one[2] if one else "waits")
    return said


@pytest.mark.parametrize("rule", [OPEN, BOUNDED], ids=["open", "bounded"])
@pytest.mark.parametrize("waited_ms", [0, 20_000, 61_000], ids=["lease spent", "lease expired", "lease given up"])
def test_an_outage_policy_lets_through_on_the_fast_path_what_the_enforcer_lets_through(
    rule: LimitRule, waited_ms: int
) -> None:
    fast, slow = worlds = without_redis(rule)
    for world in worlds:
        world.wait(waited_ms)
    assert same(fast, slow, *[0] * 40)[3:] == ["degraded"] * 37
    assert fast.degraded_ones >= 35


def test_the_very_next_request_waits_for_a_lease_when_the_breaker_closes() -> None:
    fast, slow = worlds = without_redis(OPEN)
    assert same(fast, slow, *[0] * 6) == ["ok"] * 3 + ["degraded"] * 3
    for world in worlds:
        world.reachable = True
    assert same(fast, slow, 0) == ["waits"]
    assert fast.degraded_ones == 3


def test_the_very_next_request_is_paid_for_by_a_lease_that_was_renewed() -> None:
    fast, slow = worlds = without_redis(OPEN)
    assert same(fast, slow, *[0] * 6) == ["ok"] * 3 + ["degraded"] * 3
    for world in worlds:
        world.sync(60, 6, called=False)
    assert same(fast, slow, 0) == ["ok"]
    state = limit_of(fast.directory.accounts["acme"], "calls")
    assert (state.left, state.outage_used) == (59, 0)


def test_an_outage_goes_on_by_its_policy_while_redis_is_restored() -> None:
    fast, slow = worlds = without_redis(OPEN)
    for world in worlds:
        world.granting = False
        world.sync(60, 0, called=False)
        world.ask(0, b"")
        world.sync(60, 1, called=False)
    assert same(fast, slow, *[0] * 20)[-17:] == ["degraded"] * 17
    assert fast.degraded_ones >= 17
    for world in worlds:
        world.wait(1_000)  # nothing was heard of Redis for so long
    assert same(fast, slow, 0) == ["waits"]


@pytest.mark.parametrize("check", [0, 1], ids=["one each", "ten each"])
def test_the_bound_of_an_outage_is_reached_and_never_exceeded(check: int) -> None:
    fast, slow = without_redis(BOUNDED)
    said = same(fast, slow, *[check] * 300)
    assert "degraded" not in said[said.index("denied") :]
    assert limit_of(fast.directory.accounts["acme"], "calls").outage_used == 250
    assert fast.degraded_ones > 20


def test_the_bound_of_an_outage_holds_beyond_the_period_in_which_it_began() -> None:
    fast, slow = worlds = without_redis(limit(BOUNDED, period="minute"))
    same(fast, slow, *[0] * 203)
    for world in worlds:
        world.wait(60_000)
    assert same(fast, slow, *[0] * 60) == ["degraded"] * 50 + ["denied"] * 10


def test_what_is_known_to_be_spent_stays_denied_in_an_outage() -> None:
    fast, slow = without_redis(OPEN, spent=6_200)
    said = same(fast, slow, *[0] * 220)
    assert said == ["near"] * 3 + ["degraded"] * 197 + ["denied"] * 20
    assert fast.degraded_ones > 100


def test_a_lease_and_an_outage_policy_take_turns_with_one_limit() -> None:
    """Requests of ten units are let through while those of one are still paid for by what the lease has left."""
    fast, slow = without_redis(OPEN, lease=7)
    said = same(fast, slow, *(1, 1, 1, 2, 1, 2, 2, 1, 0, 1, 0, 0, 1, 0, 0, 0))
    assert [said[number] for number in (3, 5, 6, 8, 10, 11, 13, 14)] == ["ok"] * 7 + ["degraded"]
    assert fast.degraded_ones >= 6


def test_a_lease_ends_at_the_very_millisecond() -> None:
    fast, slow = worlds = without_redis(OPEN, lease=60)
    for world in worlds:
        world.wait(500)
        world.sync(60, 0, called=False)
        world.reachable = False
        world.wait(9_990)
    assert same(fast, slow, *[0] * 4) == ["ok"] * 4
    for world in worlds:
        world.wait(10)
    assert same(fast, slow, *[0] * 4) == ["degraded"] * 4
    for world in worlds:
        world.wait(49_990)
    assert same(fast, slow, *[0] * 4) == ["degraded"] * 4
    assert limit_of(slow.directory.accounts["acme"], "calls").left
    for world in worlds:
        world.wait(10)
    assert same(fast, slow, *[0] * 4) == ["degraded"] * 4
    assert not limit_of(slow.directory.accounts["acme"], "calls").left


def test_a_lease_pays_again_when_a_report_of_other_tenants_has_renewed_it() -> None:
    fast, slow = worlds = without_redis(OPEN, lease=60)
    for world in worlds:
        world.wait(20_000)
    assert same(fast, slow, *[0] * 4) == ["degraded"] * 4
    for world in worlds:
        world.exchange.valid_until_ms = world.mono_ms + 10_000
    assert same(fast, slow, 0) == ["ok"]
