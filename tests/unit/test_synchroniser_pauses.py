"""When a synchroniser wakes by itself."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.enforcement import synchroniser
from sidecar.enforcement.exchange import ShardExchange
from sidecar.enforcement.synchroniser import Synchroniser

INTERVAL_MS = 500


class Enough(Exception):
    """Ends a loop that has none."""


def idle(shard: int) -> Any:
    return SimpleNamespace(shard=shard, ample=False, pressing=False, busy=False, resting=False)


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
    counters: Any = SimpleNamespace(snapshot_hits=0)
    store: Any = None
    asked = Synchroniser(
        [idle(shard) for shard in range(shards)],
        store,
        clock,
        counters,
        interval_ms=INTERVAL_MS,
        renew=lambda _account, _document: None,
    )
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
