"""What a worker's limits come to together: told soon, whatever the look takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.enforcement import survey
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.survey import LOOKED_AT_ONCE, Survey
from sidecar.telemetry import CoreCounters


class Exchange:
    """Holds a number of leases of two units each; every third limit is degraded."""

    def __init__(self, limits: int) -> None:
        self.limits = limits
        self.looks = 0

    def leases(self) -> Iterator[int]:
        self.looks += 1
        yield from (2 for _ in range(self.limits))
        yield 0

    def degraded(self) -> Iterator[bool]:
        yield from (number % 3 == 0 for number in range(self.limits))


class Account:
    """As much of one as a look reads."""

    def __init__(self, limits: dict[int, Any]) -> None:
        self.limits = limits

    def states(self) -> Iterator[Any]:
        return iter(self.limits.values())


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
    exchange = Exchange(LOOKED_AT_ONCE * 50)
    looks, counters = surveyed(exchange)
    await looks.look()
    await looks.look()
    assert (counters.leases_held, exchange.looks) == (0, 1)
    while not counters.leases_held:
        await asyncio.sleep(0)
    assert counters.leases_held == exchange.limits


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
    limit = SimpleNamespace(
        left=1, outage_used=0, lease=SimpleNamespace(refused=False), period=SimpleNamespace(over=lambda _: False)
    )
    limits: dict[int, Any] = dict.fromkeys(range(200), limit)
    account = Account(limits)
    exchange = SimpleNamespace(_holders={account: None}, resting=(), _touched={account: None}, wall_s=0)
    one = SimpleNamespace(
        leases=lambda: ShardExchange.leases(exchange),  # type: ignore[arg-type]
        degraded=lambda: ShardExchange.degraded(exchange),  # type: ignore[arg-type]
    )
    looks, counters = surveyed(one)
    look = asyncio.ensure_future(looks.look())
    while not look.done():
        await asyncio.sleep(0)
        limits[len(limits)] = limits[0]
    await look
    assert 200 <= counters.leases_held <= 202


async def test_a_look_under_way_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SOON_S", 0)
    looks, counters = surveyed(Exchange(LOOKED_AT_ONCE * 50))
    await looks.close()
    await looks.look()
    await looks.close()
    assert counters.leases_held == 0
