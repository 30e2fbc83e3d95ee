"""What a worker's limits come to together: told soon, whatever the look takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.enforcement import survey
from sidecar.enforcement.account import Account
from sidecar.enforcement.survey import LOOKED_AT_ONCE, Survey, leases
from sidecar.telemetry import CoreCounters
from tests.unit.tenants import NOON_S, exchange, limit, plan


def state(left: int, *, shared: bool = False, degraded: bool = False) -> Any:
    """As much of a limit as a look reads."""
    lease = SimpleNamespace(units=left, shared=shared, refused=degraded, ahead=None)
    period = SimpleNamespace(over=lambda _: False)
    return SimpleNamespace(left=left, pending=0, lease=lease, period=period, outage_used=0)


class Exchange:
    """Accounts that hold a number of leases of two units each; every third limit is degraded."""

    wall_s = 0

    def __init__(self, limits: int) -> None:
        self.limits = limits
        self.looks = 0
        states = {number: state(2, degraded=number % 3 == 0) for number in range(limits)}
        self.accounts = [SimpleNamespace(limits=states), SimpleNamespace(limits={0: state(0)})]

    def holding(self) -> Iterator[Any]:
        self.looks += 1
        yield from self.accounts

    def unreported(self) -> Iterator[Any]:
        yield from self.accounts


def surveyed(*exchanges: Any) -> tuple[Survey, CoreCounters]:
    counters = CoreCounters()
    return Survey(exchanges, counters), counters


async def test_it_tells_what_is_held_and_degraded_now() -> None:
    survey, counters = surveyed(Exchange(LOOKED_AT_ONCE * 2), Exchange(1))
    await survey.look()
    held = LOOKED_AT_ONCE * 2 + 1
    assert (counters.leases_held, counters.lease_units) == (held, 2 * held)
    assert counters.degraded_limits == 1 + -(-LOOKED_AT_ONCE * 2 // 3)


async def test_a_look_that_takes_longer_is_told_next_time_and_not_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SOON_S", 0)
    shard = Exchange(LOOKED_AT_ONCE * 50)
    looks, counters = surveyed(shard)
    await looks.look()
    await looks.look()
    assert (counters.leases_held, shard.looks) == (0, 1)
    while not counters.leases_held:
        await asyncio.sleep(0)
    assert counters.leases_held == shard.limits


async def test_others_get_their_turn_during_a_look() -> None:
    looks, _ = surveyed(Exchange(LOOKED_AT_ONCE * 10))
    look = asyncio.ensure_future(looks.look())
    turns = 0
    while not look.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 10


async def test_what_goes_wrong_in_a_look_is_raised_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    looks, _ = surveyed(object())
    with pytest.raises(AttributeError):
        await looks.look()
    assert "a look through the limits failed" in caplog.text


async def test_a_tenants_limits_may_come_and_go_during_a_look() -> None:
    """Beyond a few they are in a dictionary, which nobody may change while it is looked through."""
    limits = dict.fromkeys(range(200), state(1))
    account = SimpleNamespace(limits=limits)
    looks, counters = surveyed(SimpleNamespace(holding=lambda: [account], unreported=lambda: [account], wall_s=0))
    look = asyncio.ensure_future(looks.look())
    while not look.done():
        await asyncio.sleep(0)
        limits[len(limits)] = limits[0]
    await look
    assert 200 <= counters.leases_held <= 202


def test_a_lease_counts_while_its_period_is_on_with_what_requests_left_of_it() -> None:
    shard = exchange()
    burst_rule = limit(name="burst", period="minute")
    owner = Account(plan(burst_rule, limit()), shard)
    burst, calls = owner.current(NOON_S)
    for one in (burst, calls):
        one.left = 20
    burst.lay()
    calls.spend(3)
    shard.touch(owner)
    shard._holders[owner] = None
    assert sorted(leases(shard)) == [17, 20]
    shard.wall_s = NOON_S + 60
    assert sorted(leases(shard)) == [0, 17]


async def test_a_look_under_way_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SOON_S", 0)
    looks, counters = surveyed(Exchange(LOOKED_AT_ONCE * 50))
    await looks.close()
    await looks.look()
    await looks.close()
    assert counters.leases_held == 0
