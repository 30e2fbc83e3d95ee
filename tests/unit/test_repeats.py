"""One answer for one request that is asked twice."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.enforcement import repeats
from sidecar.enforcement.decision import Decision
from sidecar.enforcement.repeats import Repeats

ALLOWED = Decision(allow=True, status=200, reason="allowed", tenant="acme")
DENIED = Decision(allow=False, status=429, reason="limit_reached")
KEY = ("r1", "acme", "one")


class Decider:
    """Counts how often it is asked and answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> Decision:
        self.asked += 1
        return await asyncio.shield(self.answer)


async def turns() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_repeat_gets_the_same_answer_for_the_kept_time() -> None:
    kept = Repeats(10_000)
    kept.keep(*KEY, ALLOWED, 0)
    assert kept.find(*KEY, 9_999) is ALLOWED
    assert kept.find(*KEY, 10_000) is None


@pytest.mark.parametrize("key", [("r2", "acme", "one"), ("r1", "other", "one"), ("r1", "acme", "two")])
def test_another_request_tenant_or_route_is_no_repeat(key: tuple[str, str, str]) -> None:
    kept = Repeats(10_000)
    kept.keep(*KEY, ALLOWED, 0)
    assert kept.find(*key, 1) is None


def test_answers_outlive_the_turn_of_the_dictionaries() -> None:
    kept = Repeats(10_000)
    kept.keep("r0", "acme", "one", ALLOWED, 0)
    kept.keep(*KEY, ALLOWED, 9_000)
    kept.keep("r2", "acme", "one", ALLOWED, 10_000)
    assert kept.find(*KEY, 18_999) is ALLOWED
    assert kept.find("r0", "acme", "one", 10_001) is None


def test_memory_is_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "ENTRIES_MAX", 3)
    kept = Repeats(10_000)
    for number in range(8):
        kept.keep(str(number), "acme", "one", ALLOWED, 0)
    found = [number for number in range(8) if kept.find(str(number), "acme", "one", 1)]
    assert found == [3, 4, 5, 6, 7]


async def test_two_who_ask_at_once_share_one_decision() -> None:
    kept, decide = Repeats(10_000), Decider()
    first, second = (asyncio.create_task(kept.once(KEY, decide)) for _ in range(2))
    await turns()
    assert kept.pending(*KEY)
    decide.answer.set_result(DENIED)
    assert await first is await second is DENIED
    assert decide.asked == 1
    assert not kept.pending(*KEY)


async def test_when_the_first_goes_away_the_second_is_answered() -> None:
    """A gateway closes the connection of a try that took too long, after it has sent the next one."""
    kept, decide = Repeats(10_000), Decider()
    first, second, third = (asyncio.create_task(kept.once(KEY, decide)) for _ in range(3))
    await turns()
    first.cancel()
    await turns()
    assert not second.done()
    decide.answer.set_result(ALLOWED)
    assert await second is await third is ALLOWED
    assert decide.asked == 2
    assert first.cancelled()


async def test_when_the_second_goes_away_the_first_is_answered() -> None:
    kept, decide = Repeats(10_000), Decider()
    first, second = (asyncio.create_task(kept.once(KEY, decide)) for _ in range(2))
    await turns()
    second.cancel()
    await turns()
    decide.answer.set_result(ALLOWED)
    assert await first is ALLOWED
    assert second.cancelled()


async def test_turned_off_every_request_is_decided_on_its_own() -> None:
    kept, decide = Repeats(0), Decider()
    kept.keep(*KEY, ALLOWED, 0)
    assert kept.find(*KEY, 0) is None
    first, second = (asyncio.create_task(kept.once(KEY, decide)) for _ in range(2))
    await turns()
    assert not kept.pending(*KEY)
    decide.answer.set_result(ALLOWED)
    assert await first is await second is ALLOWED
    assert decide.asked == 2
