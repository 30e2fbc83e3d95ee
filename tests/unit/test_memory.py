"""Garbage is looked for a little at a time, and everywhere when nobody waits."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from sidecar import memory
from sidecar.memory import FULL_S, PATIENCE_S, QUIET_REQUESTS, QUIET_S, SLICE_S


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


async def told(
    monkeypatch: pytest.MonkeyPatch, served: Callable[[], int], lasting_s: float, *, worth: bool
) -> list[tuple[float, str]]:
    """What the collector was told, and when (s)."""
    calls: list[tuple[float, str]] = []
    now_s = 0.0

    async def sleep(delay_s: float) -> None:
        nonlocal now_s
        now_s += delay_s
        if now_s > lasting_s:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    for name in ("collect", "freeze", "unfreeze"):
        monkeypatch.setattr(gc, name, lambda name=name: calls.append((now_s, name)))
    monkeypatch.setattr(gc, "get_count", lambda: (0, 0, int(worth)))
    with pytest.raises(asyncio.CancelledError):
        await memory.tend(served)
    return calls


async def test_what_is_new_is_looked_at_in_slices_and_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = await told(monkeypatch, lambda: 0, 3 * SLICE_S, worth=True)
    assert calls == [(turn * SLICE_S, name) for turn in (1, 2, 3) for name in ("collect", "freeze")]


async def test_nothing_is_looked_at_where_nothing_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await told(monkeypatch, lambda: 0, FULL_S - SLICE_S, worth=False) == []


async def test_a_quiet_process_looks_at_everything_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = await told(monkeypatch, lambda: 0, 2 * FULL_S, worth=False)
    assert calls == [(turn * FULL_S, name) for turn in (1, 2) for name in ("unfreeze", "collect", "freeze")]


async def test_a_busy_process_does_so_at_the_latest_after_some_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = await told(monkeypatch, count(step=QUIET_REQUESTS).__next__, PATIENCE_S + QUIET_S, worth=False)
    assert calls == [(PATIENCE_S, name) for name in ("unfreeze", "collect", "freeze")]


async def test_nobody_else_decides_when_everything_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    await told(monkeypatch, lambda: 0, SLICE_S, worth=False)
    assert gc.get_threshold() == memory.THRESHOLDS


async def test_garbage_that_was_frozen_is_found_by_the_full_look(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ring:
        """Something that refers to itself."""

        def __init__(self) -> None:
            self.me: Ring | None = self

    looks = 0
    ring: Ring | None = Ring()

    async def sleep(_: float) -> None:
        nonlocal looks, ring
        looks += 1
        if looks == 2:
            ring = None  # it was frozen with the first look
        if looks > FULL_S / SLICE_S:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(gc, "get_count", lambda: (0, 0, int(looks == 1)))
    with pytest.raises(asyncio.CancelledError):
        await memory.tend(lambda: 0)
    gc.unfreeze()
    assert not [one for one in gc.get_objects() if isinstance(one, Ring)]


def test_what_was_built_at_the_start_is_not_looked_at_again() -> None:
    memory.settle()
    assert gc.get_freeze_count() > 0
