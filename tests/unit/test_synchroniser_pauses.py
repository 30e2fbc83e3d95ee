"""When a synchroniser wakes by itself."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.enforcement import synchroniser
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.synchroniser import LISTENING, Synchroniser

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


@pytest.mark.parametrize("endless", [None, 1])
async def test_it_listens_to_leases_at_rest_every_two_seconds_to_no_more_than_four_shards_at_once(
    monkeypatch: pytest.MonkeyPatch, endless: int | None
) -> None:
    """Whatever has something to tell is synced by itself. A call that does not end holds up nobody for long."""
    now_ms, answers_after_s = 0, 0.01
    clock: Any = SimpleNamespace(monotonic_ms=lambda: now_ms, wall_s=lambda: 0)
    exchanges = [idle(shard, resting=True, pressing=shard == 3) for shard in range(10)]
    asked = of([*exchanges, idle(10)], clock)
    began: list[tuple[int, int]] = []
    in_flight = most = 0

    async def exchanged(exchange: ShardExchange) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        asked._last_ms[exchange.shard] = now_ms
        began.append((now_ms, exchange.shard))
        await asyncio.sleep(answers_after_s if exchange.shard != endless else 60)
        in_flight -= 1
        del asked._tasks[exchange.shard]

    async def pause(delay_s: float) -> None:
        nonlocal now_ms
        now_ms += round(delay_s * 1000) - 5  # a little early
        if now_ms > 4_000:
            raise Enough

    monkeypatch.setattr(asked, "_exchange", exchanged)
    monkeypatch.setattr(synchroniser, "ANSWERED_S", 0.05)
    monkeypatch.setattr(
        synchroniser,
        "asyncio",
        SimpleNamespace(sleep=pause, wait=asyncio.wait, get_running_loop=asyncio.get_running_loop),
    )
    with pytest.raises(Enough):
        await asked.listen()
    shards = [0, 1, 2, 4, 5, 6, 7, 8, 9]
    again = [shard for shard in shards if shard != endless]
    assert began == [(1_990, shard) for shard in shards] + [(3_980, shard) for shard in again]
    assert most == LISTENING + (endless is not None)
    for task in asked._tasks.values():
        task.cancel()
