"""When a synchroniser wakes by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.enforcement import synchroniser
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.synchroniser import APART_S, PARTS, Synchroniser

INTERVAL_MS = 500


class Enough(Exception):
    """Ends a loop that has none."""


def idle(shard: int, *, resting: bool = False, pressing: bool = False) -> Any:
    return SimpleNamespace(shard=shard, ample=False, pressing=pressing, busy=resting or pressing, resting=resting)


def of(exchanges: list[Any], clock: Any) -> Synchroniser:
    counters: Any = SimpleNamespace(snapshot_hits=0)
    store: Any = None
    return Synchroniser(
        exchanges, store, clock, counters, interval_ms=INTERVAL_MS, renew=lambda _account, _document: None
    )


@pytest.mark.parametrize(("shards", "wakes"), [(1, 1), (2, 2), (3, 3), (4, 4), (16, 4)])
async def test_it_wakes_once_an_interval_for_each_part_that_has_shards(
    shards: int, wakes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    intervals = 3
    pauses_s: list[float] = []
    looked: list[int] = []

    async def pause(delay_s: float) -> None:
        if len(pauses_s) == intervals * wakes:
            raise Enough
        pauses_s.append(delay_s)

    clock: Any = SimpleNamespace(monotonic_ms=lambda: 0, wall_s=lambda: 0)
    asked = of([idle(shard) for shard in range(shards)], clock)
    due = asked.due

    def watched(part: int, *, busy: bool) -> list[ShardExchange]:
        looked.append(part)
        return due(part, busy=busy)

    monkeypatch.setattr(asked, "due", watched)
    monkeypatch.setattr(synchroniser, "asyncio", SimpleNamespace(sleep=pause, Task=asyncio.Task))
    with pytest.raises(Enough):
        await asked.run()
    assert looked == list(range(wakes)) * intervals
    assert sum(pauses_s[wakes : 2 * wakes]) == pytest.approx(INTERVAL_MS / 1000)


@pytest.mark.parametrize(
    ("pressing", "groups"),
    [
        ((), [[0, 4, 8, 12], [16, 20, 24, 28], [32, 36]]),
        ((8,), [[0, 4], [8, 12], [16, 20, 24, 28], [32, 36]]),
        (range(40), [[shard] for shard in range(0, 40, 4)]),
    ],
)
async def test_shards_with_nothing_to_tell_begin_four_at_once_and_no_more_of_them_in_a_while(
    pressing: Iterable[int], groups: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    clock: Any = SimpleNamespace(monotonic_ms=lambda: 10_000, wall_s=lambda: 0)
    began: dict[float, list[int]] = {}

    async def pause(delay_s: float) -> None:
        nonlocal now_s
        now_s += delay_s
        if now_s > INTERVAL_MS / 1000 / PARTS + 0.1:
            raise Enough

    asked = of([idle(shard, resting=True, pressing=shard in pressing) for shard in range(40)], clock)
    monkeypatch.setattr(asked, "start", lambda exchange: began.setdefault(now_s, []).append(exchange.shard))
    monkeypatch.setattr(synchroniser, "asyncio", SimpleNamespace(sleep=pause, Task=asyncio.Task))
    with pytest.raises(Enough):
        await asked.run()
    assert list(began.values()) == groups
    for at_s, shards in began.items():
        assert at_s - INTERVAL_MS / 1000 / PARTS == pytest.approx(shards[0] // PARTS * APART_S)
