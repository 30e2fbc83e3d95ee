"""Garbage is looked for when nobody waits."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from sidecar import memory


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


async def collected(monkeypatch: pytest.MonkeyPatch, served: Iterator[int], *, worth: bool, rounds: int) -> int:
    """How many full collections there were in so many looks."""
    looks = collections = 0

    async def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks > rounds:
            raise asyncio.CancelledError

    def collect() -> None:
        nonlocal collections
        collections += 1

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(gc, "collect", collect)
    monkeypatch.setattr(gc, "get_count", lambda: (0, 0, memory.WORTH if worth else memory.WORTH - 1))
    with pytest.raises(asyncio.CancelledError):
        await memory.tend(lambda: next(served))
    return collections


async def test_a_quiet_process_collects_when_it_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await collected(monkeypatch, iter(range(10)), worth=True, rounds=3) == 3
    assert await collected(monkeypatch, iter(range(10)), worth=False, rounds=3) == 0


async def test_a_busy_process_collects_at_most_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter(range(0, 1 << 30, 100_000))
    assert await collected(monkeypatch, busy, worth=True, rounds=2 * memory.PATIENCE) == 2


async def test_nobody_else_decides_when_everything_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    await collected(monkeypatch, iter(range(10)), worth=False, rounds=1)
    assert gc.get_threshold() == memory.THRESHOLDS


def test_what_was_built_at_the_start_is_not_looked_at_again() -> None:
    memory.settle()
    assert gc.get_freeze_count() > 0
